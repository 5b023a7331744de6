import numpy as np
import onnx
import torch
from torch import nn

from taskptq.export.onnx.joining import append_graph
from taskptq.export.onnx.runtime import session
from taskptq.export.onnx.tracing import trace


class Sums(nn.Module):
    """Two outputs that both networks call alike inside."""

    def forward(self, x):
        return x + 1, x * 2


class Products(nn.Module):
    def forward(self, a, b):
        # Equal outputs: the exporter gives one of them an Identity.
        product = (a + 1) * (b * 2)
        return product, product


def test_the_second_graph_reads_the_first():
    x = torch.tensor([[1.0, 2.0]])
    shared = {'dynamic_axes': {}, 'opset': 20}
    first = trace(
        Sums(), (x,), input_names=['x'], output_names=['a.0', 'a.1'], **shared
    )
    onnx.helper.set_model_props(first, {'taskptq.model': '"A"'})
    first.producer_name = 'taskptq'
    second = trace(
        Products(),
        Sums()(x),
        input_names=['a.0', 'a.1'],
        output_names=['y', 'z'],
        **shared,
    )
    joined = append_graph(first, second, outputs=['boxes', 'scores'])
    assert [v.name for v in joined.graph.output] == ['boxes', 'scores']
    assert [v.name for v in joined.graph.input] == ['x']
    assert joined.producer_name == 'taskptq'
    assert joined.metadata_props[0].value == '"A"'
    found = session(joined.SerializeToString()).run(None, {'x': x.numpy()})
    expected = Products()(*Sums()(x))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
