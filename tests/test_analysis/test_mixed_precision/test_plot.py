"""The front is drawn."""

import pytest

from taskptq.analysis.mixed_precision.plot import plot_front

pytest.importorskip('matplotlib')
REPORT = dict(
    front=dict(
        cost='bops',
        unit='of 8 x 8 bits',
        points=[dict(cost=0.5, loss=0.1), dict(cost=1.0, loss=0.0)],
        others=[dict(cost=0.7, loss=0.2, origin='uniform 8')],
    ),
    tried=[dict(cost=0.6, measured_loss=0.05)],
    allowed=0.01,
)


def test_a_picture_is_written(tmp_path):
    path = plot_front(REPORT, tmp_path / 'new' / 'front.png')
    assert path.read_bytes()[:4] == b'\x89PNG'
