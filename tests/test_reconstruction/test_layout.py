"""Units that read plain memory only, as deformable convolutions do."""

import pytest
import torch
from torch import nn

from taskptq.core import float_only
from taskptq.reconstruction import reconstruct
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.layout import are_close, needs_plain_memory
from taskptq.testing import TinyBlock, tiny_batches

LAST = torch.channels_last


class Refusing(nn.Module):
    """Checks its input, as mmcv's DeformConv2d does."""

    def forward(self, x):
        if not x.is_contiguous():
            raise RuntimeError('input tensor has to be contiguous')
        return x * 2


class Misreading(nn.Module):
    """Reads the bytes as if they were in plain order, without a look."""

    def forward(self, x):
        plain = torch.empty(x.shape).stride()
        return x.as_strided(x.shape, plain) * 2


class Block(TinyBlock):
    def __init__(self, inner):
        super().__init__(3, 6)
        self.inner = inner

    def forward(self, x):
        return super().forward(self.inner(x))


class Model(nn.Sequential):
    def __init__(self, inner):
        super().__init__(TinyBlock(3, 3), Block(inner), TinyBlock(6, 6))


def built(inner):
    torch.manual_seed(0)
    return Model(inner()).eval()


@pytest.mark.parametrize('scope', ['block', 'layer'])
@pytest.mark.parametrize('rounding', ['adaround', 'gptq'])
@pytest.mark.parametrize('inner', [Refusing, Misreading])
def test_reconstruction_of_what_needs_plain_memory(
    inner, rounding, scope, quantized, quick, forward, random_images
):
    batches = random_images()
    model = quantized(built(inner), batches)
    report = reconstruct(
        model,
        batches,
        quick(steps=3, rounding=rounding, scope=scope, blocks=['1']),
        forward=forward,
        progress=False,
    )
    assert len(report.units) >= 3
    assert report.uncalled == []


@pytest.mark.parametrize(
    ('inner', 'plain'),
    [
        (Refusing, True),
        (Misreading, True),
        (nn.Identity, False),
    ],
)
@pytest.mark.parametrize('budget', [0, 1 << 24])
def test_each_unit_gets_the_layout_it_needs(
    inner, plain, budget, quantized, plan, random_images
):
    batches = random_images()
    model = quantized(built(inner), batches)
    capturer = plan(model, batches, extra=['1'])
    capturer.cache.max_bytes = budget
    capturer.capture_float()
    layouts = {}
    for index, unit_plan in enumerate(capturer.plans):
        data = UnitData(
            capturer, index, cache=capturer.cache, rows_per_image=8
        )
        data.compute('float', keep=None)
        data.prepare_sampling()
        ((call, targets),) = data.sample(2)[0]
        assert call[0][0].is_contiguous() is data.plain
        assert call[0][0].is_contiguous(memory_format=LAST) is (not data.plain)
        assert targets[0].shape[0] == 2
        layouts[unit_plan.unit.name] = data.plain
    # The others keep what is faster for their convolutions.
    assert layouts == {'0': False, '1': plain, '2': False}
    capturer.cache.close()


@pytest.mark.parametrize('inner', [Refusing, Misreading])
def test_targets_are_those_of_the_model(inner, quantized, plan):
    batches = tiny_batches('conv', num_batches=2)
    model = quantized(built(inner), batches)
    outputs = []
    model[1].register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad(), float_only(model):
        for batch in batches:
            model(batch)
    expected = list(outputs)
    capturer = plan(model, batches, extra=['1'])
    capturer.capture_float()
    for index in range(2):
        data = UnitData(
            capturer, index, cache=capturer.cache, rows_per_image=8
        )
        data.compute('float', keep=None)
    outputs.clear()
    with torch.no_grad(), float_only(model):
        for batch in range(2):
            found = data._outputs(0, batch, data.plain)
            torch.testing.assert_close(found[0], expected[batch])


def fails_on(*layouts):
    def run(plain):
        if plain in layouts:
            raise RuntimeError('broken')
        return [torch.ones(2)]

    return run


def test_plain_memory_is_no_way_out_of_other_errors():
    assert needs_plain_memory(fails_on(False), name='unit')
    assert not needs_plain_memory(fails_on(True), name='unit')
    assert not needs_plain_memory(fails_on(True, False), name='unit')


def test_an_error_of_the_unit_itself_comes_through(
    quantized, plan, random_images
):
    model = quantized(built(nn.Identity), random_images())
    capturer = plan(model, random_images(), extra=['1'])
    capturer.capture_float()
    model[0].conv1 = nn.Conv2d(5, 3, 1)
    data = UnitData(capturer, 0, cache=capturer.cache, rows_per_image=8)
    with pytest.raises(RuntimeError, match='channels'):
        data.compute('float', keep=None)


A = torch.tensor([1.0, -200.0, float('inf')])


@pytest.mark.parametrize(
    ('found', 'close'),
    [
        ([A, A.bool()], True),
        ([A + 0.1, A.bool()], True),
        ([A, ~A.bool()], True),  # masks are no activations
        ([A + 0.3, A.bool()], False),
        ([A * float('nan'), A.bool()], False),
        ([A[:2], A.bool()], False),
        ([A], False),
    ],
)
def test_are_close(found, close):
    assert are_close(found, [A, A.bool()]) is close


def test_nothing_but_infinity_is_compared_too():
    none = [torch.full((2,), float('nan'))]
    assert are_close(none, none)
    assert not are_close([torch.zeros(2)], none)
