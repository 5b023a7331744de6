"""The picture of small files."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

from taskptq.bench.size_page import Point
from taskptq.bench.size_plot import draw_sizes, front


def test_the_front_has_what_nothing_beats():
    points = [
        Point('a', 'small', 20.0, 0.8),
        Point('a', 'worse', 10.0, 0.7),
        Point('b', 'large', 4.0, 1.0),
        Point('b', 'same', 4.0, 0.9),
    ]
    assert [point.name for point in front(points)] == ['small', 'large']
    assert front([]) == []


def test_panels_show_models_and_one_legend(tmp_path):
    models = {
        'net, set': [Point('dense', 'w8', 4.0, 1.0)],
        'other, set': [Point('coded', 'w2', 16.0, 0.2)],
    }
    path = draw_sizes(models, tmp_path / 'p' / 'sizes.svg')
    text = path.read_text()
    assert text.count('net, set') == 1
    assert text.count('other, set') == 1
    assert '>dense<' in text
