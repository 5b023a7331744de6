import pytest
import torch
from torch import nn

from taskptq.hosts import registry as mapping
from taskptq.reconstruction.capture.tracing import (
    FloatBatch,
    first_full_batch,
    trace,
)
from taskptq.testing import TinyBlock


class Cut(nn.Module):
    """Cuts rows out, as a region-of-interest layer does."""

    def forward(self, x, rois):
        return torch.stack([x[0, :, i : i + 2] for i in rois.tolist()])


class TwoStage(nn.Module):
    """The head sees rows that the features choose, one of them alone."""

    def __init__(self):
        super().__init__()
        self.backbone = TinyBlock(3, 6)
        self.cut = Cut()
        self.head = TinyBlock(6, 4)
        self.last = TinyBlock(4, 4)

    def forward(self, x):
        x = self.backbone(x)
        rows = x.mean(dim=(0, 1, 3)).argsort()[:3].clamp(max=6)
        x = self.head(self.cut(x, rois=rows))
        return self.last(x[:1].expand(2, -1, -1, -1))


@pytest.fixture
def two_stage(monkeypatch, quantized, random_images):
    monkeypatch.setitem(mapping.REPLAYED_INPUTS, mapping.dotted(Cut), 'rois')
    torch.manual_seed(1)
    batches = random_images(batch_size=1)
    return quantized(TwoStage(), batches), batches


@pytest.mark.parametrize('number', [0, 1])
def test_a_traced_batch_is_not_run_again(two_stage, plan, count_calls, number):
    model, batches = two_stage
    expected, capturer = plan(model, batches), plan(model, batches)
    expected.capture_float()
    calls = count_calls(model)
    kept = FloatBatch(number)
    capturer.plans = trace(
        model,
        [p.unit for p in capturer.plans],
        batches[number],
        forward=capturer.forward,
        keep=kept,
    )
    capturer.capture_float(kept)
    assert len(calls) == len(batches)
    assert kept.tensors.used_bytes == 0
    assert_same_content(capturer, expected)


def assert_same_content(capturer, expected):
    """Tensors, their layout, links and choices are those of a plain pass."""
    assert capturer.lengths == expected.lengths
    found, wanted = capturer.plans, expected.plans
    assert [p.batches for p in found] == [p.batches for p in wanted]
    assert [p.captured(i) for i, p in enumerate(found)][1:] != [[], []]
    assert capturer.skeletons.keys() == expected.skeletons.keys()
    assert capturer._replays.keys() == expected._replays.keys()
    for key, rows in expected._replays.items():
        assert torch.equal(capturer._replays[key], rows)
    for index, one in enumerate(wanted):
        for own in one.captured(index):
            for number in range(len(expected.batches)):
                key = ('float', own, number)
                x, y = capturer.cache.get(key), expected.cache.get(key)
                assert torch.equal(x, y)
                assert x.stride() == y.stride()


class Sometimes(nn.Module):
    """Skips its head for images of one channel sum or less."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.head(self.stem(x)) if x.sum() > 0 else self.stem(x)


def test_the_first_batch_that_calls_all_layers_is_chosen(plan):
    ones = torch.ones(1, 3, 2, 2)
    chosen, called, tried = first_full_batch(
        Sometimes(),
        [-ones, -ones, ones, ones],
        layers={'stem', 'head'},
        forward=lambda model, batch: model(batch),
    )
    assert (chosen, tried) == (2, 3)
    assert called['head'] == 1


def test_without_one_it_is_that_of_the_most_modules():
    ones = torch.ones(1, 3, 2, 2)
    chosen, _, tried = first_full_batch(
        Sometimes(),
        [-ones, ones, -ones, -ones, -ones],
        layers={'stem', 'head', 'other'},
        forward=lambda model, batch: model(batch),
    )
    assert (chosen, tried) == (1, 4)
