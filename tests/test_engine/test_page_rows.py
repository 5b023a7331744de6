"""Predictions of all models on one image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from taskptq.engine.page_rows import predict_row


class Boxes(nn.Module):
    """Finds the boxes that it was given."""

    def __init__(self, *corners, path='x.png'):
        super().__init__()
        self.corners = torch.tensor(corners, dtype=torch.float).view(-1, 4)
        self.path = path

    def forward(self, batch):
        found = SimpleNamespace(
            bboxes=self.corners,
            labels=torch.zeros(len(self.corners), dtype=torch.long),
            scores=torch.full((len(self.corners),), 0.9),
        )
        keys = lambda: ['pred_instances']  # noqa: E731
        return [
            SimpleNamespace(
                all_keys=keys,
                pred_instances=found,
                img_path=self.path,
                ori_shape=(40, 60),
            )
        ]


LEFT, RIGHT = (0, 0, 10, 10), (30, 0, 40, 10)


def test_models_are_compared_with_float():
    row = predict_row(
        {'same': Boxes(LEFT), 'other': Boxes(RIGHT)},
        Boxes(LEFT),
        None,
        score=0.5,
    )
    assert row.size == (40, 60)
    assert row.agreements['same'].score == 0
    assert row.agreements['other'].score == 1
    assert row.score == 1
    assert not row.is_empty


def test_without_float_nothing_is_compared():
    row = predict_row({'q': Boxes(LEFT)}, None, None, score=0.5)
    assert row.agreements == {}
    assert row.score == 0


def test_the_picture_of_an_image(tmp_path):
    path = tmp_path / 'street.png'
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    row = predict_row(
        {'q': Boxes(LEFT, path=str(path))}, Boxes(LEFT), None, score=0.5
    )
    picture = row.picture(kind='worst', classes=['cat'], score=0.5)
    assert picture['name'] == f'{tmp_path.name}/street.png'
    assert picture['photo']
    assert (picture['height'], picture['width']) == (40, 60)
    assert picture['columns'][1]['shapes'][0]['label'] == 'cat'


def test_an_image_that_is_gone_leaves_the_shapes():
    row = predict_row({'q': Boxes(LEFT)}, None, None, score=0.5)
    picture = row.picture(kind='', classes=[], score=0.5)
    assert picture['photo'] is None
    assert picture['columns'][0]['shapes'][0]['label'] == 'class 0'


@pytest.mark.parametrize('outputs', [None, [], torch.ones(3), [torch.ones(2)]])
def test_other_outputs_are_empty(outputs):
    class Plain(nn.Module):
        def forward(self, batch):
            return outputs

    row = predict_row({'q': Plain()}, None, None, score=0.5)
    assert row.is_empty
    assert row.size == (1, 1)
