"""Plots of DETR reports: one line, bar or histogram for each entry."""

import matplotlib.pyplot as plt
import pytest

from taskptq.analysis import detr_plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn; they stay open until the test ends."""
    found = []
    save = plt.Figure.savefig

    def keep(figure, *args, **kwargs):
        found.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(plt.Figure, 'savefig', keep)
    yield found
    plt.close('all')


def test_line_for_each_metric_with_gaps(figures, tmp_path):
    steps = {
        'float': {'AP': 0.4, 'APs': 0.2},
        'all': {'AP': 0.3, 'APs': None},
    }
    path = tmp_path / 'a.png'
    detr_plots.plot_progressive(steps, path, title='net')
    assert path.stat().st_size > 0
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(lines['AP']) == [0.4, 0.3]
    assert lines['APs'][0] == 0.2
    assert lines['APs'][1] != lines['APs'][1]  # a gap


def test_greatest_loss_is_on_top(figures, tmp_path):
    losses = {'neck': 0.01, 'head': 0.2, 'encoder': 0.05}
    detr_plots.plot_group_losses(losses, tmp_path / 'a.png')
    (axes,) = figures[0].axes
    bars = sorted(axes.patches, key=lambda bar: bar.get_y())
    if axes.yaxis_inverted():
        bars.reverse()
    assert [bar.get_width() for bar in bars] == [0.01, 0.05, 0.2]


def test_histogram_for_each_attention_and_model(figures, tmp_path):
    stage = dict(density=[1.0, 0.5], std=0.5, entropy=None, num_bits=None)
    layer = dict(
        edges=[0.0, 0.5, 1.5],
        stages={
            'float': stage,
            'w4': dict(stage, entropy=1.25, num_bits=4, num_codes=9),
        },
    )
    path = tmp_path / 'a.png'
    detr_plots.plot_queries({'layer 0': layer, 'layer 1': layer}, path)
    axes = figures[0].axes
    assert len(axes) == 4
    words = [
        text.get_text() for axis in axes for text in (*axis.texts, axis.title)
    ]
    assert sum('1.25' in word for word in words) == 2
