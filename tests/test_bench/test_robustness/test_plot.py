import pytest
from robustness_results import content

from taskptq.bench.robustness.plot import losses_by_kind, plot_losses


def test_losses_are_against_the_clean_float_model():
    found = losses_by_kind(content())
    assert found['clean']['float'] == 0
    assert found['clean']['q'] == pytest.approx(0.04)
    assert found['fog']['q'] == pytest.approx(0.40 - 0.17)
    assert list(found)[:2] == ['clean', 'crop']
    assert 'q' not in found['precision']


def test_a_picture_is_written(tmp_path):
    pytest.importorskip('matplotlib')
    path = plot_losses(content(), tmp_path / 'a' / 'losses.png')
    assert path.read_bytes().startswith(b'\x89PNG')
    empty = {**content(), 'rows': []}
    assert plot_losses(empty, tmp_path / 'none.png') is None
