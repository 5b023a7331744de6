import numpy as np
import onnx
import pytest
import torch
from torch import nn

from taskptq.export.onnx.wide_biases import MOST_STEPS


class Pruned(nn.Module):
    """Convolutions with channels whose weights are nearly 0."""

    def __init__(self, size):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            for layer in (self.first, self.depthwise, self.last):
                layer.weight[1] *= size
                layer.bias[1] = 2.0

    def forward(self, x):
        return self.last(self.depthwise(self.first(x).relu()).relu())


@pytest.mark.parametrize('size', [1e-10, 1e-20])
@pytest.mark.parametrize('target', ['onnxruntime', 'openvino'])
def test_the_bias_of_a_pruned_channel_is_kept(exported, size, target):
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    # Verification compares the file's outputs with the network's.
    found = exported(Pruned(size).eval(), batches=batches, target=target)
    names = {'first.weight', 'depthwise.weight', 'last.weight'}
    expected = dict.fromkeys(names, 1) if target == 'onnxruntime' else {}
    assert found.report.coarser == expected
    assert ('coarser steps' in found.report.text()) == bool(expected)


def test_other_channels_stay_what_they_are(exported):
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 8, 8)]
    found = exported(Pruned(1e-10).eval(), batches=batches)
    graph = onnx.load(str(found.path)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    layer = found.model.first
    rest = [0, 2, 3, 4, 5]
    scale = arrays['first.weight.scale']
    own = layer.weight_quantizer.scale.numpy()
    np.testing.assert_array_equal(scale[rest], own[rest])
    assert scale[1] > own[1]
    codes = arrays['first.weight.codes']
    np.testing.assert_array_equal(
        codes[rest], layer.codes().numpy()[rest].astype(np.int8)
    )
    # Half a step at most is lost, and the bias fits.
    lost = codes[1] * scale[1] - layer.weight[1].detach().numpy()
    assert np.abs(lost).max() <= scale[1] / 2
    assert np.abs(arrays['first.bias.codes']).max() <= MOST_STEPS


def test_a_network_without_such_channels_is_not_touched(exported):
    assert exported('conv').report.coarser == {}
