"""Agreement counts what both models predict."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.engine.prediction_agreement import (
    agreement_of,
    box_agreement,
    map_agreement,
)

BOX = [0.0, 0.0, 10.0, 10.0]
NEAR = [0.0, 0.0, 10.0, 9.0]
FAR = [20.0, 20.0, 30.0, 30.0]


def found(*boxes, scores=None, labels=None):
    count = len(boxes)
    return SimpleNamespace(
        bboxes=torch.tensor(boxes).reshape(count, 4),
        scores=torch.tensor(scores or [0.9] * count),
        labels=torch.tensor(labels or [0] * count),
    )


@pytest.mark.parametrize(
    ('first', 'second', 'expected'),
    [
        (found(BOX, FAR), found(NEAR, FAR), 1.0),
        (found(BOX, FAR), found(FAR), 2 / 3),
        (found(BOX), found(BOX, BOX), 2 / 3),
        (found(BOX), found(BOX, labels=[1]), 0.0),
        (found(BOX), found(FAR), 0.0),
        (found(BOX, FAR, scores=[0.9, 0.2]), found(BOX), 1.0),
        (found(), found(), 1.0),
        (found(), found(BOX), 0.0),
    ],
)
def test_boxes(first, second, expected):
    assert box_agreement([(first, second)]) == pytest.approx(expected)
    assert box_agreement([(second, first)]) == pytest.approx(expected)


def test_maps():
    a, b = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 0]])
    assert map_agreement([(a, b), (a, a)]) == pytest.approx(7 / 8)


class Adapter:
    """Decodes as told."""

    def __init__(self, decode):
        self.decode = decode


def decoded_by(decode):
    heads = [{'x': torch.zeros(1)}]
    batch = [{'inputs': [0]}]
    return agreement_of(Adapter(decode), batch, target=heads, quant=heads)


def refuse(heads, metas):
    raise NotImplementedError


def test_what_can_be_compared():
    assert decoded_by(lambda heads, metas: [found(BOX)]) == {'boxes': 1.0}
    maps = torch.zeros(2, 2, dtype=torch.int64)
    assert decoded_by(lambda heads, metas: [maps]) == {'pixels': 1.0}
    assert decoded_by(lambda heads, metas: [torch.zeros(3)]) == {}
    assert decoded_by(refuse) == {}


@pytest.mark.parametrize('error', [AssertionError, KeyError, TypeError])
def test_what_the_host_cannot_decode_is_left_out(error):
    def decode(heads, metas):
        raise error('no scale_factor')

    assert decoded_by(decode) == {}
