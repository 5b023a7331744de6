"""What is measured of one config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmseg')

from mmengine.config import Config

from taskptq.bench.coverage import one
from taskptq.bench.coverage.models import (
    build_offline,
    drawn_batch,
    output_tensors,
)
from taskptq.bench.coverage.one import gap, measure, recipe_of, sqnr
from tests.test_bench.test_coverage.test_models import SEGMENTOR


def test_a_model_whose_filters_come_from_the_image(tmp_path: Path) -> None:
    config = tmp_path / 'dmnet.py'
    Config(SEGMENTOR).dump(config)
    record = measure(config, sizes=[(4, 4), (64, 96)], steps=2)
    assert json.loads(json.dumps(record)) == record
    assert record['size'] == [64, 96]
    macs = record['macs']
    assert macs['both'] == macs['total'] > 10**6
    assert record['uncovered'] == []
    assert record['owners'] == 2
    assert record['same_bits'] is True
    assert record['off_gap'] < 1e-4
    assert record['sqnr'] > 15
    assert record['sqnr'] > record['plain_sqnr'] > 15
    assert record['units'] > 3
    assert record['passes'] >= record['breaks']
    assert 0.2 < record['file_ratio'] < 0.6


def test_models_that_take_long_are_not_reconstructed(tmp_path: Path) -> None:
    config = tmp_path / 'dmnet.py'
    Config(SEGMENTOR).dump(config)
    record = measure(config, sizes=[(64, 96)], steps=2, light_after=0)
    assert record['light'] is True
    assert 'units' not in record


def test_large_gaps_are_looked_at_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_offline(Config(SEGMENTOR), size=(32, 64))
    batch = drawn_batch(model, size=(32, 64))
    with torch.no_grad():
        expected = output_tensors(model, batch)
    monkeypatch.setattr(one, 'FAR', -1.0)
    found = one.off_gaps(model, batch, expected)
    assert found['off_gap_float64'] < 1e-9 < found['off_gap'] < 1e-4
    assert torch.get_default_dtype() is torch.float32
    assert expected[0].dtype is torch.float32


class Highest(nn.Module):
    """Marks the highest of equal values, which rounding chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight * x
        return (x == x.max()).to(x)


@pytest.mark.parametrize(('equal', 'least'), [(True, 1.0), (False, 0.0)])
def test_a_choice_of_rounding_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, equal: bool, least: float
) -> None:
    def run(model: nn.Module, batch: Tensor) -> list[Tensor]:
        return [model(batch)]

    monkeypatch.setattr(one, 'output_tensors', run)
    monkeypatch.setattr(one, 'off_gap', lambda *args: 1.0)
    batch = torch.ones(64, dtype=torch.float64)
    if not equal:
        batch[3] = 2.0
    gaps = one.double_gaps(Highest().double(), batch)
    assert gaps == {'off_gap_float64': 1.0, 'rounding_gap': least}


def test_what_double_precision_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(model: nn.Module, batch: Any) -> None:
        raise RuntimeError('expected Float')

    monkeypatch.setattr(one, 'FAR', -1.0)
    monkeypatch.setattr(one, 'off_gap', lambda *args: 0.5)
    monkeypatch.setattr(one, 'output_tensors', refuse)
    gaps = one.off_gaps(nn.Identity(), {'inputs': torch.ones(1)}, [])
    assert gaps == {'off_gap': 0.5, 'float64_failure': 'Error: expected Float'}


def test_gap_of_other_shapes_is_infinite() -> None:
    assert gap([torch.ones(2)], [torch.ones(3)]) == float('inf')
    assert gap([torch.ones(0)], [torch.ones(0)]) == 0


def test_noise_of_equal_or_other_tensors_is_none() -> None:
    assert sqnr([torch.ones(2)], [torch.ones(2)]) is None
    assert sqnr([], [torch.ones(2)]) is None


def test_steps_ask_for_a_reconstruction() -> None:
    assert recipe_of(0).reconstruction is None
    assert recipe_of(2).reconstruction['steps'] == 2
    assert recipe_of(2).qconfig.products is True


def test_outputs_that_are_not_finite_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[bool] = []

    def build(config: Config, *, size: Any, full: bool) -> nn.Module:
        given.append(full)
        model = build_offline(config, size=size)
        if not full:
            nn.init.constant_(model.decode_head.conv_seg.bias, float('nan'))
        return model

    monkeypatch.setattr(one, 'build_offline', build)
    model, _ = one.smallest_running(Config(SEGMENTOR), [(32, 64), (64, 64)])
    assert given == [False, False, True]
    assert model.decode_head.conv_seg.bias.isfinite().all()
