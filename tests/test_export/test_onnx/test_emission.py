import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from taskptq.core import LevelQuantizer, Quantizer, QuantSpec
from taskptq.export.onnx.emission import (
    exporting,
    grids_of_weight,
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
    (grid,) = grids_of_weight(quantizer, codes, name='fc.weight')
    assert set(grid.codes.unique().tolist()) == integers
    # Nothing is shifted in int8
    assert grid.quant_min == -(2 ** (grid.num_bits - 1))
    assert not grid.zero_point.any()
    values = grid.codes * grid.scale[:, None]
    assert torch.equal(values, quantizer.dequantize(codes))


@pytest.mark.parametrize('levels', ['two-plane', 'dual'])
@pytest.mark.parametrize('ch_axis', [None, 0, 1])
def test_other_levels_become_a_sum_of_planes(levels, ch_axis):
    weight = torch.randn(6, 5, 4)
    quantizer = LevelQuantizer(
        QuantSpec(num_bits=2, ch_axis=ch_axis), levels=levels
    )
    quantizer.calibrate_weight(weight)
    codes = quantizer.quantize(weight)
    grids = grids_of_weight(quantizer, codes, name='fc.weight')
    assert [grid.name for grid in grids] == [
        'fc.weight.plane0',
        'fc.weight.plane1',
    ]
    shape = [1, 1, 1]
    if ch_axis is not None:
        shape[ch_axis] = -1
    values = [grid.codes * grid.scale.reshape(shape) for grid in grids]
    assert torch.equal(sum(values), quantizer.dequantize(codes))
    assert all(float(grid.scale.min()) > 0 for grid in grids)


def test_levels_that_are_no_integers_are_refused(monkeypatch):
    weight = torch.randn(6, 40)
    quantizer = LevelQuantizer(
        QuantSpec(num_bits=2, ch_axis=0), levels='two-plane'
    )
    quantizer.calibrate_weight(weight)
    basis = ((-1.0, -0.5), (-1.0, 0.5), (1.0, -0.5), (1.0, 0.5))
    monkeypatch.setattr(type(quantizer.kind), 'basis', basis)
    codes = quantizer.quantize(weight)
    with pytest.raises(OnnxExportError, match=r"fc\.weight.*'mid-rise'"):
        grids_of_weight(quantizer, codes, name='fc.weight')


@pytest.mark.parametrize('model', ['conv', 'transposed', 'transformer'])
def test_a_network_of_two_planes_is_exported(exported, model):
    weight = {'type': 'LevelQuantizer', 'levels': 'two-plane', 'num_bits': 2}
    found = exported(model, qconfig={'weight': weight})
    stored = {one.name for one in onnx.load(str(found.path)).graph.initializer}
    planes = {name for name in stored if '.plane1.codes' in name}
    assert planes
    assert len(planes) <= found.report.num_weights / 2
    run = onnxruntime.InferenceSession(str(found.path)).run
    (y,) = run(None, {'x': found.x.numpy()})
    with torch.no_grad():
        expected = found.model(found.x)
    gap = (torch.from_numpy(y) - expected).abs().max()
    # Biases have integers, and a few inputs of layers the next code.
    assert float(gap) < 0.02 * float(expected.abs().max())


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
