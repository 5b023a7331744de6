"""Dotted names: each that belongs to an installed host is a real class."""

import importlib
import importlib.util
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from taskptq.hosts import registry as mapping
from taskptq.modules import QuantLinear, QuantModule
from taskptq.prepare import QConfig, prepare

# As the package has them: other tests register classes of their own.
OWN = ('torch', 'torchvision', 'mmcv', 'mmdet', 'mmseg', 'segment_anything')
LISTED = sorted(
    name
    for name in {
        *mapping.COUNTERPARTS,
        *mapping.KEPT_FLOAT,
        *mapping.BLOCKS,
        *mapping.REPLAYED_INPUTS,
        *mapping.COMPUTED_WEIGHTS,
        *mapping.NORMS,
        *mapping.CONV_NORM_CLASSES,
        *mapping.CONV_MODULES,
        *mapping.ROW_MODULES,
        *(name for name in mapping.TRAINING_ONLY if name),
    }
    if name.startswith((*OWN, 'taskptq'))
)
COUNTERPARTS = sorted(
    name
    for name, target in mapping.COUNTERPARTS.items()
    if name in LISTED and isinstance(target, str)
)


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize('name', LISTED)
def test_name_is_a_class_of_its_host(name: str) -> None:
    package = name.partition('.')[0]
    if not installed(package):
        pytest.skip(f'{package} is not installed')
    module, _, cls = name.rpartition('.')
    found = getattr(importlib.import_module(module), cls)
    # An alias would never match type(module).
    assert mapping.dotted(found) == name
    assert issubclass(found, nn.Module)


@pytest.mark.parametrize('name', COUNTERPARTS)
def test_counterpart_exists(name: str) -> None:
    found = mapping.COUNTERPARTS[name]
    if isinstance(found, str):
        module, _, cls = found.rpartition('.')
        found = getattr(importlib.import_module(module), cls)
    assert issubclass(found, QuantModule)


def test_lookup_takes_a_base_class_whose_forward_runs() -> None:

    class Same(nn.Linear):
        pass

    class Mine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class MyConv(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return super()._conv_forward(*args) * 2

    assert mapping.lookup(nn.Linear(2, 2)) is QuantLinear
    assert mapping.lookup(Same(2, 2)) is QuantLinear
    assert mapping.lookup(Mine(2, 2)) is None
    assert mapping.lookup(MyConv(2, 2, 1)) is None
    assert mapping.lookup(nn.ReLU()) is None


def test_blocks_are_found_along_the_line_of_descent() -> None:

    class Mine(nn.TransformerEncoderLayer):
        pass

    assert mapping.is_a(Mine(4, 2), mapping.BLOCKS)
    assert not mapping.is_a(nn.Linear(2, 2), mapping.BLOCKS)


def test_attention_is_known_by_counterpart_or_name() -> None:

    class NonLocalBlock(nn.Module):
        pass

    assert mapping.is_attention(nn.MultiheadAttention(4, 2))
    assert mapping.is_attention(NonLocalBlock())
    assert not mapping.is_attention(nn.Linear(2, 2))


def test_replayed_input_of_a_roi_extractor() -> None:
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    pooling = {'type': 'RoIAlign', 'output_size': 7, 'sampling_ratio': 0}
    module = extractors.SingleRoIExtractor(pooling, 8, [4])
    assert mapping.replayed_input(module) == 'rois'
    assert mapping.replayed_input(nn.Linear(2, 2)) is None


def test_report_gives_the_reason_of_a_class_that_stays_float() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    rows = {
        row.name: row for row in prepare(model, QConfig.from_dict({})).rows
    }
    reason = mapping.KEPT_FLOAT['torch.nn.modules.sparse.Embedding']
    assert rows['0'].reason == reason == 'look-up table, no arithmetic'


CALLERS = sorted({*mapping.CONV_NORM_CLASSES, *mapping.CONV_MODULES})


@pytest.mark.parametrize('name', CALLERS)
def test_class_that_calls_norms_has_a_forward_of_its_own(name: str) -> None:
    package = name.partition('.')[0]
    if not installed(package):
        pytest.skip(f'{package} is not installed')
    module, _, cls = name.rpartition('.')
    # Else no subclass could be told from one with another forward.
    assert 'forward' in vars(getattr(importlib.import_module(module), cls))


def test_forward_decides_who_stands_for_a_class() -> None:
    from taskptq.testing.models import TinyBlock

    class Same(TinyBlock):
        pass

    class Other(TinyBlock):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    names = frozenset({mapping.dotted(TinyBlock)})
    assert mapping.has_forward_of(TinyBlock(2, 2), names)
    assert mapping.has_forward_of(Same(2, 2), names)
    assert not mapping.has_forward_of(Other(2, 2), names)
    patched = TinyBlock(2, 2)
    patched.forward = patched.forward
    assert not mapping.has_forward_of(patched, names)


def test_plain_class_is_what_baking_leaves() -> None:
    assert mapping.plain_class(nn.Linear(2, 2)) is nn.Linear
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    assert mapping.plain_class(layer) is nn.Linear
    assert mapping.lookup(layer) is QuantLinear
