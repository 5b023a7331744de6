"""Dotted names: each that belongs to an installed host is a real class."""

import importlib
import importlib.util

import pytest
from torch import nn

from taskptq.hosts import registry as mapping
from taskptq.modules import QuantModule
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
