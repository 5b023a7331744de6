import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from taskptq.export.onnx.emission import grid_of, grids_of_weight
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.graph import Graph
from taskptq.export.onnx.targets import TARGETS
from taskptq.export.onnx.verification import (
    check_codes,
    check_first_codes,
    check_outputs,
    unrounded,
)


def change(path, name, edit):
    """Edit one constant of a file."""
    model = onnx.load(str(path))
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(edit(array), name))
    onnx.save(model, str(path))
    return model


def grids_of(model):
    module = model.stem
    (weight,) = grids_of_weight(
        module.weight_quantizer, module.codes(), name='stem.weight'
    )
    return {
        'stem.weight': weight,
        'stem.input_quantizer': grid_of(
            module.input_quantizer, name='stem.input_quantizer'
        ),
    }


def flip(array):
    array.flat[0] ^= 1
    return array


@pytest.mark.parametrize(
    ('name', 'edit', 'message'),
    [
        ('stem.weight.codes', flip, 'codes of stem.weight'),
        (
            'stem.input_quantizer.scale',
            lambda a: np.nextafter(a, np.float32(9)),
            'grid of stem.input_quantizer',
        ),
    ],
)
def test_one_changed_bit_is_found_by_name(exported, name, edit, message):
    found = exported('conv')
    changed = change(found.path, name, edit)
    grids, target = grids_of(found.model), TARGETS['onnxruntime']
    with pytest.raises(OnnxExportError, match=message):
        check_codes(Graph(changed), grids, target=target)


def test_first_codes_beyond_the_grid_are_cut(exported):
    bits = {'num_bits': 4}
    found = exported(
        'conv', qconfig={'weight': bits, 'activation': bits, 'edge_bits': 4}
    )
    graph = Graph(onnx.load(str(found.path)))
    x = 4 * found.x
    checked = check_first_codes(
        graph, found.model, (x,), feeds={'x': x.numpy()}
    )
    assert 'equal but for 0 ties' in checked['first codes']


def test_other_first_codes_are_found(exported):
    found = exported('conv')
    feeds = {'x': found.x.numpy()}
    graph = Graph(onnx.load(str(found.path)))
    checked = check_first_codes(graph, found.model, (found.x,), feeds=feeds)
    assert 'stem.input_quantizer: equal' in checked['first codes']
    wrong = {'x': found.x.numpy() * 1.05}
    with pytest.raises(OnnxExportError, match=r'stem\.input_quantizer'):
        check_first_codes(graph, found.model, (found.x,), feeds=wrong)


def test_a_file_that_the_runtime_cannot_run_is_one_sentence(exported):
    # Zero points that differ between channels.
    with pytest.raises(OnnxExportError, match="deploy='onnxruntime'"):
        exported('conv', qconfig={'weight': {'symmetric': False}})


def test_an_output_below_the_threshold_is_named(exported):
    found = exported('conv', target='openvino')
    change(found.path, 'head.weight.scale', lambda a: a * 1.2)
    with pytest.raises(OnnxExportError, match="output 'y'"):
        check_outputs(
            found.path,
            found.model,
            (found.x,),
            feeds={'x': found.x.numpy()},
            integers=False,
        )


def test_weights_move_by_their_rounding_noise_and_come_back(exported):
    model = exported('conv', qconfig={'weight': {'num_bits': 4}}).model
    weight, scale = model.stem.weight, model.stem.weight_quantizer.scale
    before = weight.detach().clone()
    with unrounded(model):
        steps = (weight - before) / scale.view(-1, 1, 1, 1)
        assert 0.25 < float(steps.detach().std()) < 0.33
        assert float(steps.detach().abs().max()) <= 0.5
    assert torch.equal(weight, before)
