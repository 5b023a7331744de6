import pytest
import torch
from torch import nn

from taskptq.core import Quantizer, QuantSpec
from taskptq.export.onnx.emission import exporting
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.testing.models import tiny_batches, tiny_model

from .conftest import quantize


def test_values_and_attributes_stay_what_they_are():
    (x, *_) = batches = tiny_batches('conv')
    model = quantize(tiny_model('conv'), batches)
    with torch.no_grad():
        expected = model(x)
        with exporting(model) as emitted:
            assert torch.equal(model(x), expected)
    assert 'fake_quantize' not in model.stem.input_quantizer.__dict__
    assert 'quantized_weight' not in model.stem.__dict__
    grid = emitted.grids['stem.weight']
    assert torch.equal(grid.codes, model.stem.codes())
    assert emitted.grids['stem.input_quantizer'].codes is None


def test_a_grid_without_an_operator_is_computed_in_floats(exported):
    qconfig = {'softmax': {'type': 'PowerOfTwoQuantizer', 'num_bits': 8}}
    found = exported('transformer', qconfig=qconfig)
    assert isinstance(
        found.model.layers[0].self_attn.softmax_quantizer, PowerOfTwoQuantizer
    )
    assert found.report.decomposed == [
        f'layers.{i}.self_attn.softmax_quantizer' for i in (0, 1)
    ]


def test_a_quantizer_without_codes_is_refused_by_name():
    class Odd(Quantizer):
        def fake_quantize(self, x):
            return x

    model = nn.Sequential(Odd(QuantSpec()))
    model[0].set_bounds(signed=True)
    with (
        pytest.raises(OnnxExportError, match='0 is a Odd'),
        exporting(model),
    ):
        pass
