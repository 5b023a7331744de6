"""What is measured of one config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.config import Config

from taskptq.bench.coverage.one import gap, main, recipe_of, sqnr
from tests.test_bench.test_coverage.test_models import SEGMENTOR


def test_a_model_whose_filters_come_from_the_image(tmp_path: Path) -> None:
    config, out = tmp_path / 'dmnet.py', tmp_path / 'record.json'
    Config(SEGMENTOR).dump(config)
    main([str(config), str(out), '--size', '64', '96'])
    record = json.loads(out.read_text())
    macs = record['macs']
    assert macs['both'] == macs['total'] > 10**6
    assert record['uncovered'] == []
    assert record['owners'] == 2
    assert record['same_bits'] is True
    assert record['off_gap'] < 1e-4
    assert record['sqnr'] > 15
    assert 0.2 < record['file_ratio'] < 0.6


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
