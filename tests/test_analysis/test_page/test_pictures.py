"""Pictures of predictions."""

import numpy as np

from taskptq.analysis.page.agreement import compare
from taskptq.analysis.page.pictures import choose, draw
from taskptq.analysis.page.predictions import Box, Line, Prediction

SIZE = (60, 80)
IMAGE = np.zeros((60, 80, 3), np.uint8)


def box(x, *, label=0, score=0.9, mask=None):
    return Box(corners=(x, 0, x + 10, 9), label=label, score=score, mask=mask)


def picture(clean, **noisy):
    agreements = {
        title: compare(clean, one, score=0.5, size=SIZE)
        for title, one in noisy.items()
        if clean is not None
    }
    return draw(
        IMAGE,
        clean,
        noisy,
        agreements,
        classes=['cat'],
        score=0.5,
        size=SIZE,
    )


def marks(column):
    return [(item['label'], item['mark']) for item in column['shapes']]


def test_disagreements_are_marked():
    clean = Prediction(boxes=[box(0), box(30)])
    noisy = Prediction(boxes=[box(0), box(60, label=7)])
    found = picture(clean, q=noisy)
    left, right = found['columns']
    assert (left['title'], right['title']) == ('float', 'q')
    assert marks(left) == [('cat', 'agreed'), ('cat', 'lost')]
    assert marks(right) == [('cat', 'agreed'), ('class 7', 'new')]
    assert right['sentence'] == '1 agrees, 1 lost, 1 new'
    assert found['photo'].startswith('data:image/jpeg')
    assert left['shapes'][0] | {'score': 0} == {
        'kind': 'box',
        'x': 0,
        'y': 0,
        'width': 10,
        'height': 9,
        'mark': 'agreed',
        'label': 'cat',
        'score': 0,
    }


def test_weak_objects_are_drawn_only_as_counterparts():
    clean = Prediction(boxes=[box(0, score=0.6), box(30, score=0.3)])
    noisy = Prediction(boxes=[box(0, score=0.4)])
    left, right = picture(clean, q=noisy)['columns']
    assert marks(left) == [('cat', 'agreed')]
    assert marks(right) == [('cat', 'agreed')]


def test_several_models_have_losses_in_their_own_columns():
    clean = Prediction(boxes=[box(0)])
    columns = picture(clean, a=Prediction(), b=Prediction(boxes=[box(0)]))[
        'columns'
    ]
    assert [column['title'] for column in columns] == ['float', 'a', 'b']
    assert marks(columns[0]) == [('cat', 'alone')]
    assert marks(columns[1]) == [('cat', 'lost')]
    assert marks(columns[2]) == [('cat', 'agreed')]


def test_without_a_float_model():
    (column,) = picture(None, q=Prediction(boxes=[box(0)]))['columns']
    assert marks(column) == [('cat', 'alone')]


def test_lines_masks_and_maps():
    points = np.array([[1.0, 2.0], [3.0, 4.5]])
    mask = np.zeros(SIZE, bool)
    mask[:5] = True
    clean = Prediction(
        boxes=[box(0, mask=mask)], lines=[Line(points=points, score=0.9)]
    )
    left, _ = picture(clean, q=clean)['columns']
    assert left['shapes'][1]['points'] == '1.0,2.0 3.0,4.5'
    assert left['overlay'].startswith('data:image/png')
    weak = Prediction(boxes=[box(0, mask=mask, score=0.3)])
    assert picture(clean, q=weak)['columns'][1]['overlay']
    assert picture(Prediction(), q=weak)['columns'][1]['overlay'] is None
    maps = Prediction(classes=np.zeros(SIZE, int))
    other = Prediction(classes=np.ones(SIZE, int))
    columns = picture(maps, q=other)['columns']
    assert [column['title'] for column in columns] == [
        'float',
        'q',
        'q: other class than float',
    ]
    assert all(column['overlay'] for column in columns)
    legend = picture(maps, q=other)['legend']
    assert [one['name'] for one in legend] == ['cat', 'class 1']
    assert all(one['color'].startswith('#') for one in legend)
    assert picture(clean, q=clean)['legend'] == []


def test_typical_images_have_objects():
    busy = [True, False, False, True]
    chosen = choose([0.0, 0.0, 0.0, 0.5], busy=busy, worst=2, typical=1)
    assert chosen == [(3, 'worst'), (0, 'typical')]
    chosen = choose([0.0] * 4, busy=[False] * 4, worst=2, typical=2)
    assert chosen == [(1, 'typical'), (2, 'typical')]
