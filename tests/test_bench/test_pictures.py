"""Images of a data set, predictions above a score, and their outlines."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.bench.pictures import chosen_batches, outline, predict


class Sample(SimpleNamespace):
    def clone(self):
        return Sample(**vars(self))


@pytest.fixture
def dataset():
    return [
        {'inputs': torch.full((1,), float(i)), 'data_samples': Sample(id=i)}
        for i in range(10)
    ]


@pytest.mark.parametrize(
    ('count', 'chosen'), [(1, [5]), (2, [2, 7]), (10, [*range(10)])]
)
def test_evenly_spaced(dataset, count, chosen):
    found = chosen_batches(dataset, count=count)
    assert [batch['data_samples'][0].id for batch in found] == chosen
    assert [int(batch['inputs'][0]) for batch in found] == chosen


@pytest.mark.parametrize('count', [0, 11])
def test_more_than_there_are(dataset, count):
    with pytest.raises(ValueError, match=f'{count}.*10'):
        chosen_batches(dataset, count=count)


def test_only_confident_boxes(dataset):
    scores = torch.tensor([0.2, 0.3, 0.9])
    instances = SimpleNamespace(
        scores=scores,
        bboxes=torch.arange(12.0).view(3, 4),
        labels=torch.arange(3),
    )

    def test_step(batch):
        assert batch['data_samples'][0] is not dataset[0]['data_samples']
        return [SimpleNamespace(pred_instances=instances)]

    (batch,) = chosen_batches(dataset[:1], count=1)
    boxes, labels = predict(
        SimpleNamespace(test_step=test_step), batch, score=0.3
    )
    assert boxes.tolist() == [[8.0, 9.0, 10.0, 11.0]]
    assert labels.tolist() == [2]


def test_outline_of_a_crop():
    patches = []
    axes = SimpleNamespace(add_patch=patches.append)
    outline(
        axes,
        torch.tensor([10.0, 20.0, 14.0, 26.0]),
        color='red',
        corner=(8, 16),
    )
    (patch,) = patches
    assert patch.get_xy() == (1.5, 3.5)
    assert (patch.get_width(), patch.get_height()) == (4, 6)
