import numpy as np
import onnx
import pytest
import torch
from torch import nn

from taskptq.export.onnx.runtime import session


class Residual(nn.Module):
    """A layer on a path of its own, the others beside it."""

    def __init__(self, layer):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = layer
        self.beside = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.layer(x) + self.beside(x)))


def nets():
    return {
        'convolution': Residual(nn.Conv2d(8, 8, 1)),
        'groups': Residual(nn.Conv2d(8, 8, 3, padding=1, groups=4)),
        'transposed': Residual(nn.ConvTranspose2d(8, 8, 1)),
    }


@pytest.fixture
def spread():
    """Return networks whose layer has channels of very different size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nets()
        sizes = torch.logspace(0, -4, 8)[:, None, None, None]
        for model in made.values():
            model.layer.weight.data *= sizes
        return made, [torch.randn(2, 3, 12, 12) for _ in range(2)]


@pytest.mark.parametrize('kind', list(nets()))
def test_float_weights_stay_float_in_the_runtime(exported, spread, kind):
    models, batches = spread
    model = models[kind].eval()
    found = exported(model, batches=batches, qconfig={'keep_float': ['layer']})
    (layer,) = found.report.checks['float_layers']
    assert layer.startswith('/layer/Conv')
    outputs = found.report.checks['outputs']['y']
    assert outputs['file_to_simulation_db'] > 40


def test_the_values_stay_the_same(exported, spread):
    models, batches = spread
    found = exported(
        models['convolution'].eval(),
        batches=batches,
        qconfig={'keep_float': ['layer']},
    )
    model = onnx.load(str(found.path))
    feeds = {'x': found.x.numpy()}
    (with_guard,) = session(str(found.path), optimize=False).run(None, feeds)
    layer = next(n for n in model.graph.node if n.name == '/layer/Conv')
    makers = {n.output[0]: n for n in model.graph.node}
    guard = makers[layer.input[0]]
    (plain,) = [
        n
        for n in model.graph.node
        if n.op_type == 'DequantizeLinear'
        and n.input[0] == guard.input[0]
        and n.name != guard.name
    ]
    layer.input[0] = plain.output[0]
    (without,) = session(model.SerializeToString(), optimize=False).run(
        None, feeds
    )
    np.testing.assert_array_equal(with_guard, without)


def test_integer_layers_are_left_alone(exported):
    found = exported('conv')
    names = [n.name for n in onnx.load(str(found.path)).graph.node]
    assert not any(n.endswith('/input/DequantizeLinear') for n in names)
