import pytest
import torch
from torch import nn

from taskptq.engine.module_calls import captured_calls
from taskptq.engine.raw_outputs import (
    Part,
    RawOutputs,
    image_axes,
    make_part,
    module_part,
    nested,
    one_output,
)


class TwoLevels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        fine = self.conv(x) * self.scale
        coarse = nn.functional.avg_pool2d(fine, 2)
        return [fine, coarse], fine.mean(dim=(2, 3))


def build(*, dynamic=False) -> Part:
    model = TwoLevels()

    def forward(x):
        maps, means = model(x)
        return {'maps': maps, 'means': means}

    return make_part(
        'network',
        forward,
        modules={'conv': model.conv, 'scale': model.scale},
        inputs={'images': torch.randn(2, 3, 8, 12)},
        axes={'images': image_axes(dynamic=dynamic)},
    )


def test_outputs_are_named_by_their_place():
    part = build()
    assert part.output_names == ('maps.0', 'maps.1', 'means')
    named = part.network.named_outputs(*part.inputs)
    found = nested(named)
    assert [m.shape for m in found['maps']] == [(2, 4, 8, 12), (2, 4, 4, 6)]
    assert torch.equal(found['means'], named['means'])
    assert [n for n, _ in part.network.named_parameters()] == [
        'scale',
        'conv.weight',
        'conv.bias',
    ]


def test_free_sizes_are_found_by_running():
    assert build().dynamic_axes == {
        'images': {0: 'batch'},
        'maps.0': {0: 'batch'},
        'maps.1': {0: 'batch'},
        'means': {0: 'batch'},
    }
    axes = build(dynamic=True).dynamic_axes
    assert axes['maps.1'] == {
        0: 'batch',
        2: 'maps.1.height',
        3: 'maps.1.width',
    }
    assert axes['means'] == {0: 'batch'}


def test_longer_inputs():
    part = build(dynamic=True)
    assert part.longer('batch')[0].shape == (3, 3, 8, 12)
    assert part.longer('height')[0].shape == (2, 3, 16, 12)


def test_dotted_names_become_folders():
    inner = nn.Linear(2, 2)
    network = RawOutputs(inner, modules={'head.fc.0': inner})
    assert [n for n, _ in network.named_parameters()] == [
        'head.fc.0.weight',
        'head.fc.0.bias',
    ]


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


class Gap(nn.Module):
    def forward(self, x, maps=(), factor=1):
        return x * factor, None, [y + 1 for y in maps]


def called(module, *args, **kwargs):
    calls = captured_calls({'a.b': module}, lambda: module(*args, **kwargs))
    return calls.get('a.b')


class Ending(nn.Module):
    def forward(self, x):
        return x + 1, None


@pytest.mark.parametrize('module', [nn.Linear(3, 3), Pair(), Ending()])
def test_a_module_returns_what_it_returned(module):
    x = torch.randn(70, 3)
    part = module_part('a.b', module, call=called(module, x), label='rois')
    assert len(part.inputs[0]) == 64
    found = one_output(part.network.named_outputs(x))
    expected = module(x)
    assert isinstance(found, type(expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_a_module_is_called_as_it_was():
    module, x, y = Gap(), torch.randn(6, 3), torch.randn(2, 4)
    call = called(module, x, maps=[y, y + 1], factor=2)
    part = module_part('a.b', module, call=call, label='rois')
    assert part.input_names == ('input0', 'input1', 'input2')
    assert part.dynamic_axes['output.0'] == {0: 'rois*3'}
    assert part.dynamic_axes['output.2.1'] == {0: 'rois'}
    assert [len(z) for z in part.longer('rois')] == [9, 3, 3]
    first, none, maps = one_output(part.network.named_outputs(x, y, y))
    assert torch.equal(first, 2 * x)
    assert none is None
    assert torch.equal(maps[1], y + 1)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([()], 'was given no tensor'),
        ([(torch.ones(1), object())], 'was given a object'),
        ([(torch.ones(1), ()), (torch.ones(1), (), 2)], 'several ways'),
        ([], 'was not called'),
        ([(torch.ones(0),)], 'was not called'),
    ],
)
def test_a_module_that_takes_no_tensors_is_refused(args, message):
    class Any(nn.Module):
        def forward(self, *args):
            return args

    module = Any()
    calls = captured_calls({'a.b': module}, lambda: [module(*a) for a in args])
    with pytest.raises(ValueError, match=message):
        module_part('a.b', module, call=calls.get('a.b'), label='rois')


def test_what_was_no_tensor_keeps_its_place():
    x = torch.ones(1)
    assert nested({'a.0': x, 'a.2': x})['a'] == [x, None, x]
