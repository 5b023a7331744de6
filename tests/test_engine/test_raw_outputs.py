import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize('module', [nn.Linear(3, 3), Pair()])
def test_a_module_returns_what_it_returned(module):
    x = torch.randn(70, 3)
    part = module_part('a.b', module, args=(x,), label='rois')
    assert len(part.inputs[0]) == 64
    found = one_output(part.network.named_outputs(x))
    expected = module(x)
    assert isinstance(found, type(expected))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ('args', 'message'), [(None, 'no call'), (([1],), 'other arguments')]
)
def test_a_module_that_takes_no_tensors_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        module_part('a.b', Pair(), args=args, label='rois')
