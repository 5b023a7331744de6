import onnx
import pytest
import torch
from torch import nn

from taskptq.core import LevelQuantizer, Quantizer, QuantSpec
from taskptq.export.onnx.emission import (
    exporting,
    grid_of_weight,
    value_table,
)
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
    kinds = [node.op_type for node in onnx.load(str(found.path)).graph.node]
    assert kinds.count('Pow') == 0


def test_attention_maps_of_one_bit_run(exported):
    softmax = {
        'type': 'LevelQuantizer',
        'num_bits': 1,
        'levels': 'unsigned',
        'observer': {'type': 'MSEObserver'},
    }
    found = exported('transformer', qconfig={'softmax': softmax})
    assert found.report.decomposed == [
        f'layers.{i}.self_attn.softmax_quantizer' for i in (0, 1)
    ]


@pytest.mark.parametrize('tau', [0, 1, 2])
def test_values_of_codes_are_looked_up(tau):
    quantizer = PowerOfTwoQuantizer(QuantSpec(num_bits=4), tau=tau)
    quantizer.set_range(torch.zeros(1), torch.tensor([0.9]))
    x = torch.rand(2, 3, 5, 7) ** 4
    codes = quantizer.quantize(x)
    found = value_table(quantizer)[codes.long()]
    assert torch.equal(found, quantizer.dequantize(codes))
    # One scale per head: no single table.
    quantizer.set_range(torch.zeros(3), torch.tensor([0.9, 0.5, 0.7]))
    assert value_table(quantizer) is None


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


@pytest.mark.parametrize(
    ('levels', 'num_bits', 'integers'),
    [
        ('binary', 1, {-1, 1}),
        ('ternary', 2, {-1, 0, 1}),
        ('mid-rise', 2, {-3, -1, 1, 3}),
    ],
)
def test_levels_become_integers_times_a_scale(levels, num_bits, integers):
    weight = torch.randn(6, 40)
    quantizer = LevelQuantizer(
        QuantSpec(num_bits=num_bits, ch_axis=0), levels=levels
    )
    quantizer.calibrate_weight(weight)
    codes = quantizer.quantize(weight)
    grid = grid_of_weight(quantizer, codes, name='fc.weight')
    assert set(grid.codes.unique().tolist()) == integers
    # Nothing is shifted in int8
    assert grid.quant_min == -(2 ** (grid.num_bits - 1))
    assert not grid.zero_point.any()
    values = grid.codes * grid.scale[:, None]
    assert torch.equal(values, quantizer.dequantize(codes))


def test_other_levels_are_refused_with_the_way_out():
    weight = torch.randn(6, 40)
    quantizer = LevelQuantizer(
        QuantSpec(num_bits=2, ch_axis=0), levels='two-plane'
    )
    quantizer.calibrate_weight(weight)
    codes = quantizer.quantize(weight)
    with pytest.raises(OnnxExportError, match=r"fc\.weight.*'mid-rise'"):
        grid_of_weight(quantizer, codes, name='fc.weight')


def test_a_network_of_ternary_weights_is_exported(exported):
    qconfig = {
        'weight': {
            'type': 'LevelQuantizer',
            'levels': 'ternary',
            'num_bits': 2,
        },
        'edge_bits': None,
    }
    found = exported('conv', qconfig=qconfig)
    quantizer = found.model.layer1.conv1.weight_quantizer
    assert isinstance(quantizer, LevelQuantizer)
    assert not found.report.decomposed
