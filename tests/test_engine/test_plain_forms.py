import io
import math
import sys

import pytest
import torch
from torch import nn

from taskptq.engine.exportable import exportable_calls
from taskptq.engine.plain_forms import gathered_psa_mask, running_maxima


@pytest.mark.parametrize('dim', [1, -1, 2])
def test_running_maxima(dim):
    x = torch.randn(2, 5, 8, 1)
    assert torch.equal(running_maxima(x, dim), x.cummax(dim)[0])


class Forms(nn.Module):
    def forward(self, x):
        maxima, _ = torch.cummax(x, dim=1)
        row = torch.full((1,), math.inf).repeat(x.shape[1])
        return maxima, -torch.diag(row, 0) + x[0]


def test_forms_are_exported():
    onnxruntime = pytest.importorskip('onnxruntime')
    x = torch.randn(2, 5, 5)
    buffer = io.BytesIO()
    with exportable_calls():
        found = Forms()(x)
        torch.onnx.export(
            Forms(), (x,), buffer, input_names=['x'], dynamo=False
        )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    expected = Forms()(x)
    for one, other, third in zip(
        session.run(None, {'x': x.numpy()}), found, expected, strict=True
    ):
        assert torch.equal(other, third)
        assert torch.equal(torch.from_numpy(one), third)


def test_other_calls_stay():
    x = torch.randn(4, 4)
    with exportable_calls():
        places = torch.cummax(x, 0)[1]
        assert torch.equal(torch.diag(x), x.diagonal())
        assert torch.equal(torch.diag(x[0], 1), x[0].diag_embed(1))
    assert torch.equal(places, x.cummax(0)[1])


@pytest.mark.parametrize('kind', [0, 1])
@pytest.mark.parametrize('mask', [(3, 5), (9, 7)])
def test_masks_of_neighborhoods(kind, mask):
    pytest.importorskip('mmcv.ops')
    module = sys.modules['mmcv.ops.psa_mask']
    x = torch.randn(2, mask[0] * mask[1], 4, 3)
    expected = module.psa_mask(x, kind, mask)
    assert torch.equal(gathered_psa_mask(x, kind, mask), expected)
    with exportable_calls():
        assert module.psa_mask is gathered_psa_mask
