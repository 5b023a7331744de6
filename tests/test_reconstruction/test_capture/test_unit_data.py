import logging

import numpy as np
import pytest
import torch
from torch import nn

from taskptq.core import float_only
from taskptq.reconstruction.capture.capture import Source
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.testing import TinyBlock, tiny_batches


class Attends(nn.Module):
    """Asks whether its arguments are one tensor, and counts the answers."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(6, 6)
        self.same = []

    def forward(self, query, key, value=None):
        self.same.append((query is key, value is key))
        return self.proj(query + key + value)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attends()

    def forward(self, x):
        x = x * 2
        return self.attention(x, x, value=x + 1)


class Growing(nn.Module):
    """Gives more rows to its head the more it is quantized."""

    def __init__(self):
        super().__init__()
        self.body = TinyBlock(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        rows = self.body(x).mean(dim=(2, 3))
        enabled = self.body.conv1.weight_quantizer.enabled
        return self.head(torch.cat([rows, rows]) if enabled else rows[:3])


def loaded(capturer, index, rows_per_image=8):
    """Everything up to one unit in the cache; its data."""
    capturer.capture_float()
    for place in range(index + 1):
        if place and capturer.plans[place].captured(place):
            capturer.capture_quant(place)
        data = UnitData(
            capturer,
            place,
            cache=capturer.cache,
            rows_per_image=rows_per_image,
        )
        data.compute('float', keep=None)
        if place < index:
            data.compute('quant', keep=None)
    data.prepare_sampling()
    return data


@pytest.fixture
def second_block(quantized, plan):
    """The second block of the conv net, behind a quantized first."""
    batches = tiny_batches('conv', num_batches=3)
    model = quantized('conv', batches)
    return loaded(plan(model, batches), 2)


def test_single_rows_are_drawn_over_all_batches(second_block):
    calls, ids = second_block.sample(5)
    ((args, kwargs), (target,)) = calls[0]
    assert kwargs == {}
    assert args[0].shape == (5, 8, 16, 16)
    assert target.shape == (5, 16, 8, 8)
    assert len(set(ids)) == 5
    assert all(0 <= i < 12 for i in ids)
    cache, plan = second_block.cache, second_block.plan
    source = plan.calls[0][0]
    for place, image in enumerate(ids):
        batch, row = divmod(image, 4)
        quant = cache.get(('quant', source, batch))[row]
        assert torch.equal(args[0][place], quant)
        out = cache.get(('float', Source('out', 2, 0, 0), batch))[row]
        assert torch.equal(target[place], out)


def test_draws_follow_the_global_generator(second_block):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([second_block.sample(4)[1] for _ in range(3)])
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_asking_for_more_rows_than_there_are(second_block):
    calls, ids = second_block.sample(50)
    assert ids == tuple(range(12))
    assert calls[0][0][0][0].shape[0] == 12


@pytest.mark.parametrize('drop_prob', [0.0, 0.5, 1.0])
def test_inputs_mix_float_and_quantized_elements(second_block, drop_prob):
    ((((x,), _), _),) = second_block.sample(12, drop_prob=drop_prob)[0]
    source = second_block.plan.calls[0][0]
    quant, reference = (
        torch.cat(
            [second_block.cache.get((stream, source, b)) for b in range(3)]
        )
        for stream in ('quant', 'float')
    )
    differs = quant != reference
    assert differs.float().mean() > 0.3
    is_float = (x == reference)[differs]
    assert torch.equal(torch.where(x == reference, reference, quant), x)
    assert float(is_float.float().mean()) == pytest.approx(
        drop_prob, abs=0.05 if drop_prob == 0.5 else 0
    )


def test_rows_are_drawn_from_batches_of_one_size(quantized, plan):
    images = [
        torch.randn(4, 3, 16, 16),
        torch.randn(3, 3, 8, 24),
        torch.randn(4, 3, 16, 16),
    ]
    model = quantized('conv', images)
    data = loaded(plan(model, images), 1)
    source, out = data.plan.calls[0][0], Source('out', 1, 0, 0)
    places = [(b, row) for b, x in enumerate(images) for row in range(len(x))]
    drawn = []
    for _ in range(60):
        calls, ids = data.sample(2)
        ((x,), _), (target,) = calls[0]
        assert len(x) == len(target) == len(set(ids)) == 2
        for place, number in enumerate(ids):
            batch, row = places[number]
            given = data.cache.get(('quant', source, batch))[row]
            wanted = data.cache.get(('float', out, batch))[row]
            assert torch.equal(x[place], given)
            assert torch.equal(target[place], wanted)
        drawn.append(ids)
    assert set().union(*drawn) == set(range(11))
    # Both batches of one size together, and each size by its rows, 8 to 3.
    assert any(first < 4 and second > 6 for first, second in drawn)
    assert 30 <= sum(not set(ids) & {4, 5, 6} for ids in drawn) <= 56


def test_key_that_is_the_query_stays_so(quantized, plan):
    batches = [torch.randn(2, 5, 6) for _ in range(2)]
    model = quantized(Attention(), batches)
    capturer = plan(model, batches, extra=['attention'])
    assert [p.unit.name for p in capturer.plans] == ['attention']
    model.attention.same.clear()
    data = loaded(capturer, 0)
    calls, _ = data.sample(3, drop_prob=0.5)
    args, kwargs = calls[0][0]
    model.attention(*args, **kwargs)
    assert len(model.attention.same) == 5  # captures, computed ones, this
    assert set(model.attention.same) == {(True, False)}


def test_other_shapes_fall_back_to_float_inputs(
    quantized, plan, random_images, caplog
):
    batches = random_images()
    model = quantized(Growing(), batches)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        data = loaded(plan(model, batches), 1)
        for _ in range(3):
            calls, _ = data.sample(2)
    warnings = [r for r in caplog.records if 'differ in shape' in r.message]
    assert len(warnings) == 1
    assert 'head' in warnings[0].message
    with float_only(model), torch.no_grad():
        rows = [model.body(x).mean(dim=(2, 3))[:3] for x in batches]
    (x,), _ = calls[0][0]
    assert any(torch.allclose(x, r, atol=1e-6) for r in rows)


@pytest.mark.parametrize(
    ('batch_size', 'rows_per_image', 'expected'),
    [(1, 4, 4), (2, 4, 8), (2, 100, 20), (100, 100, 40)],
)
def test_rows_that_are_no_images(
    batch_size, rows_per_image, expected, quantized, plan
):
    def forward(model, batch):
        return model(batch['rois'])

    # 2 images with 10 regions each, twice
    batches = [
        {'inputs': [0, 1], 'rois': torch.randn(20, 3, 6, 6)} for _ in range(2)
    ]
    model = quantized(TinyBlock(3, 4), [b['rois'] for b in batches])
    capturer = plan(nn.Sequential(model), batches, forward=forward)
    data = loaded(capturer, 0, rows_per_image=rows_per_image)
    calls, ids = data.sample(batch_size)
    assert calls[0][0][0][0].shape[0] == expected
    assert ids == ()


def test_sequence_first_tokens_are_not_taken_apart(quantized, plan):
    def forward(model, batch):
        return model(batch['tokens'])

    batches = [
        {'inputs': [0, 1], 'tokens': torch.randn(7, 2, 6)} for _ in range(2)
    ]
    model = nn.Sequential(nn.Linear(6, 4))
    model = quantized(model, [b['tokens'] for b in batches])
    data = loaded(plan(model, batches, forward=forward), 0)
    calls, ids = data.sample(1)
    assert calls[0][0][0][0].shape == (7, 2, 6)
    assert ids in ((0, 1), (2, 3))


class WithSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x, sizes):
        return self.conv(x) * float(sizes[0])


class Described(nn.Module):
    """Hands an array of image sizes on, as some heads get it."""

    def __init__(self):
        super().__init__()
        self.head = WithSizes()

    def forward(self, x):
        return self.head(x * 2, np.array([x.shape[2], x.shape[3]]))


def test_arguments_that_cannot_be_compared(quantized, plan, random_images):
    batches = random_images()
    model = quantized(Described(), batches)
    data = loaded(plan(model, batches, extra=['head']), 0)
    calls, ids = data.sample(1)
    assert ids in ((0, 1, 2, 3), (4, 5, 6, 7))
    assert calls[0][0][0][1].tolist() == [8, 8]


class Levels(nn.Module):
    """Hands on the sizes of levels, by chance as many as there are images."""

    def __init__(self):
        super().__init__()
        self.head = WithSizes()

    def forward(self, x):
        sizes = torch.arange(1, len(x) + 1)
        return self.head(x * 2, sizes)


def test_integers_are_no_rows_of_images(quantized, plan, random_images):
    batches = random_images()
    model = quantized(Levels(), batches)
    data = loaded(plan(model, batches, extra=['head']), 0)
    calls, ids = data.sample(1)
    assert ids in ((0, 1, 2, 3), (4, 5, 6, 7))
    assert calls[0][0][0][1].tolist() == [1, 2, 3, 4]


def test_only_wanted_outputs_are_kept(second_block):
    data, out = second_block, Source('out', 2, 0, 0)
    data.compute('quant', keep=())
    assert ('quant', out, 0) not in data.cache
    data.compute('quant', keep=[out])
    assert all(('quant', out, batch) in data.cache for batch in range(3))


def test_computing_leaves_the_stored_inputs_alone(quantized, plan):
    batches = tiny_batches('conv')
    model = quantized('conv', batches)
    model.layer1.register_forward_pre_hook(lambda _m, args: args[0].mul_(2))
    data = loaded(plan(model, batches), 1)
    source = data.plan.calls[0][0]
    before = data.cache.get(('float', source, 0)).clone()
    data.compute('float', keep=None)
    assert torch.equal(data.cache.get(('float', source, 0)), before)
    leaves, _ = flatten(data.sample(2)[0])
    assert all(not leaf.requires_grad for leaf in leaves)
