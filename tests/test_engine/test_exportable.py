import io
import sys
import types

import pytest
import torch
from torch import nn

from taskptq.engine.exportable import exportable_calls, sampled_deform_conv2d

torchvision = pytest.importorskip('torchvision')


@pytest.mark.parametrize('offset_groups', [1, 2])
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize(
    ('stride', 'padding', 'dilation', 'groups'),
    [(1, 1, 1, 1), (2, 0, 1, 1), (1, 2, 2, 2)],
)
def test_sampling_convolves_as_torchvision_does(
    offset_groups, masked, stride, padding, dilation, groups
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, weight, bias = draw(2, 4, 7, 9), draw(6, 4 // groups, 3, 3), draw(6)
    out = nn.Conv2d(4, 6, 3, stride, padding, dilation)(x).shape[-2:]
    # Some taps far outside of the map.
    offset = 3 * draw(2, 2 * 9 * offset_groups, *out)
    mask = draw(2, 9 * offset_groups, *out) if masked else None
    settings = {
        'stride': (stride, stride),
        'padding': (padding, padding),
        'dilation': (dilation, dilation),
        'mask': mask,
    }
    expected = torchvision.ops.deform_conv2d(
        x, offset, weight, bias, **settings
    )
    found = sampled_deform_conv2d(x, offset, weight, bias, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_hosts_function_is_replaced_for_a_while():
    before = torchvision.ops.deform_conv2d
    with exportable_calls():
        assert torchvision.ops.deform_conv2d is sampled_deform_conv2d
    assert torchvision.ops.deform_conv2d is before


def test_a_function_is_replaced_wherever_it_was_imported(monkeypatch):
    holder = types.ModuleType('holder')
    holder.convolve = torchvision.ops.deform_conv2d
    monkeypatch.setitem(sys.modules, 'holder', holder)
    with exportable_calls():
        assert holder.convolve is sampled_deform_conv2d
    assert holder.convolve is torchvision.ops.deform_conv2d


class Shifted(nn.Module):
    """Samples each channel at places of its own, as TOOD does its boxes."""

    def forward(self, x, offset):
        channels = x.shape[1]
        weight = x.new_ones(channels, 1, 1, 1)
        return mmcv_ops().deform_conv2d(
            x, offset, weight, 1, 0, 1, channels, channels
        )


def mmcv_ops():
    return pytest.importorskip('mmcv.ops')


def test_functions_of_mmcv_have_a_form():
    onnxruntime = pytest.importorskip('onnxruntime')
    mmcv_ops()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, 8, generator=generator)
    offset = 3 * torch.randn(2, 8, 6, 8, generator=generator)
    buffer = io.BytesIO()
    torch.onnx.export(
        Traced(Shifted()),
        (x, offset),
        buffer,
        input_names=['x', 'offset'],
        opset_version=16,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    (found,) = session.run(None, {'x': x.numpy(), 'offset': offset.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found), Shifted()(x, offset), rtol=1e-4, atol=1e-4
    )


class Sorted(nn.Module):
    def forward(self, x):
        first = x.argsort(dim=1, descending=True, stable=True)
        return first, (x > 0).int().argsort(dim=1, stable=True)


class Traced(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *tensors):
        with exportable_calls():
            return self.inner(*tensors)


def test_stable_sorts_keep_the_order_of_ties():
    onnxruntime = pytest.importorskip('onnxruntime')
    x = torch.tensor([[1.0, -1, 2, 1, 2, -1], [0, 0, 0, 3, 0, 3]])
    buffer = io.BytesIO()
    torch.onnx.export(
        Traced(Sorted()), (x,), buffer, input_names=['x'], dynamo=False
    )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    for found, expected in zip(
        session.run(None, {'x': x.numpy()}), Sorted()(x), strict=True
    ):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize('size', [(2, 3), 3, (1, 1), (4, 6), (6, 6)])
def test_pooling_to_a_size(size):
    x = torch.randn(2, 3, 8, 12)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, size)
    with exportable_calls():
        found = torch.nn.functional.adaptive_avg_pool2d(x, size)
        module = torch.nn.AdaptiveAvgPool2d(size)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(module, expected)


@pytest.mark.parametrize('size', [(2, 3), 3, (1, 1), (4, 6), (5, 7)])
def test_maxima_pooled_to_a_size(size):
    x = torch.randn(2, 3, 8, 12)
    pool = torch.nn.AdaptiveMaxPool2d(size)
    expected, places = torch.nn.functional.adaptive_max_pool2d(
        x, size, return_indices=True
    )
    with exportable_calls():
        found = torch.nn.functional.adaptive_max_pool2d(x, output_size=size)
        module = pool(x)
        pair = torch.nn.functional.adaptive_max_pool2d(
            x, size, return_indices=True
        )
    assert torch.equal(found, expected)
    assert torch.equal(module, expected)
    assert torch.equal(pair[1], places)


@pytest.mark.parametrize('size', [(3, 5), (1, 1), (4, 6)])
@pytest.mark.parametrize('kind', ['max', 'avg'])
def test_pooling_to_the_size_of_a_map_has_a_form_in_onnx(kind, size):
    onnxruntime = pytest.importorskip('onnxruntime')
    pool = getattr(torch.nn.functional, f'adaptive_{kind}_pool2d')

    class Pooled(torch.nn.Module):
        def forward(self, x, y):
            return pool(x, output_size=y.size()[2:]) + y

    given = torch.randn(1, 2, 8, 12), torch.randn(1, 2, *size)
    buffer = io.BytesIO()
    with exportable_calls():
        torch.onnx.export(
            Pooled(), given, buffer, input_names=['x', 'y'], dynamo=False
        )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    feed = {'x': given[0].numpy(), 'y': given[1].numpy()}
    found = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(found, Pooled()(*given))
