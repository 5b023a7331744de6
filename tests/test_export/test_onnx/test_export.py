import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from taskptq.core import AffineQuantizer
from taskptq.core.setting_error import SettingError
from taskptq.export.onnx import OnnxExportError, export_onnx
from taskptq.export.onnx.runtime import session
from taskptq.testing.models import TINY_MODELS, tiny_batches, tiny_model


def run(path, x, **options):
    return session(str(path), **options).run(None, {'x': x.numpy()})[0]


@pytest.mark.parametrize('name', TINY_MODELS)
@pytest.mark.parametrize('bits', [{}, {'num_bits': 4}])
def test_without_additions_the_file_computes_the_simulation(
    exported, name, bits
):
    # OpenVINO needs no further grids, so nothing may differ but ties.
    qconfig = {'weight': bits, 'activation': bits}
    found = exported(name, qconfig=qconfig, target='openvino')
    with torch.no_grad():
        expected = found.model(found.x).numpy()
    got = run(found.path, found.x, optimize=False)
    assert np.mean(np.abs(got - expected) > 1e-4) < 0.01
    assert found.report.added == {}


def test_all_convolutions_run_in_integers_on_onnx_runtime(exported):
    found = exported('conv')
    assert found.report.checks['float_layers'] == []
    # 6 convolutions and a linear
    assert found.report.checks['integer_layers'] == 7
    assert '/layer1/Relu_output_0' in found.report.added


def test_a_float_network_is_written_as_it_is(tmp_path):
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    path = tmp_path / 'new' / 'float.onnx'
    report = export_onnx(
        model, (x,), path, input_names=['x'], output_names=['y']
    )
    assert report.num_weights == report.num_activations == 0
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), model(x), atol=1e-5)


def test_metadata_versions_and_names(exported):
    found = exported(metadata={'classes': 'a'})
    model = onnx.load(str(found.path))
    assert {p.key: p.value for p in model.metadata_props}['classes'] == 'a'
    assert model.ir_version <= 10
    assert [o.version for o in model.opset_import] == [21]
    assert [i.name for i in model.graph.input] == ['x']
    assert [o.name for o in model.graph.output] == ['y']


@pytest.mark.parametrize('opset', [13, 17, 20])
def test_older_opsets_compute_the_same(exported, opset):
    found = exported('conv', opset=opset)
    assert onnx.load(str(found.path)).opset_import[0].version == opset
    assert found.report.checks['float_layers'] == []


class Pyramid(nn.Module):
    """Two strides, the coarse features added to the fine ones."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.lateral = nn.Conv2d(4, 4, 1)
        self.smooth = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        fine = torch.relu(self.fine(x))
        coarse = self.lateral(torch.relu(self.coarse(fine)))
        size = fine.shape[2:]
        return self.smooth(fine + nn.functional.interpolate(coarse, size=size))


def test_sizes_of_the_example_are_not_those_of_a_free_image(exported):
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, *size) for size in ((32, 32), (16, 48))]
    free = {0: 'n', 2: 'height', 3: 'width'}
    found = exported(
        Pyramid().eval(),
        batches=batches,
        qconfig={'deploy': 'onnxruntime'},
        dynamic_axes={'x': free, 'y': {0: 'n', 2: 'rows', 3: 'columns'}},
    )
    assert not onnx.load(str(found.path)).graph.value_info
    for x in batches:
        with torch.no_grad():
            expected = found.model(x)
        got = run(found.path, x)
        assert got.shape == tuple(expected.shape)
        assert np.abs(got - expected.numpy()).mean() < 0.05


def test_how_values_are_computed_is_no_part_of_the_graph(
    exported, monkeypatch
):
    plain = AffineQuantizer.fake_quantize

    def in_place(self, x):
        out = torch.empty_like(x).copy_(plain(self, x))
        return out.mul_(2.0).mul_(0.5)

    free = {'x': {0: 'n'}, 'y': {0: 'n'}}
    expected = exported('conv', dynamic_axes=free)
    kinds = [n.op_type for n in onnx.load(str(expected.path)).graph.node]
    monkeypatch.setattr(AffineQuantizer, 'fake_quantize', in_place)
    found = exported('conv', dynamic_axes=free)
    nodes = onnx.load(str(found.path)).graph.node
    assert [node.op_type for node in nodes] == kinds


def test_the_batch_can_be_free(exported):
    found = exported('conv', dynamic_axes={'x': {0: 'n'}, 'y': {0: 'n'}})
    one = run(found.path, found.x[:1])
    assert one.shape[0] == 1
    np.testing.assert_allclose(one, run(found.path, found.x)[:1], atol=1e-5)


def test_four_bit_weights_are_stored_in_half_bytes(exported):
    eight = exported('conv').path.stat().st_size
    four = exported('conv', qconfig={'weight': {'num_bits': 4}})
    assert four.path.stat().st_size < eight
    types = {t.data_type for t in onnx.load(str(four.path)).graph.initializer}
    assert onnx.TensorProto.INT4 in types
    assert four.report.checks['integer_layers'] == 7


def test_a_file_that_fails_is_removed(exported, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OnnxExportError('wrong')

    monkeypatch.setattr('taskptq.export.onnx.export.verify_file', fail)
    with pytest.raises(OnnxExportError):
        exported('conv')
    assert not (tmp_path / 'model.onnx').exists()


def test_codes_of_16_bits_need_opset_21(exported):
    wide = {'activation': {'num_bits': 16}}
    with pytest.raises(OnnxExportError, match='give opset=21'):
        exported('conv', qconfig=wide, opset=20)


def test_unknown_targets_and_opsets_are_refused_first(exported):
    with pytest.raises(SettingError, match='target'):
        exported(target='tensorflow')
    with pytest.raises(SettingError, match='opset'):
        exported(opset=12)


def test_tensorrt_gets_signed_grids_around_zero(exported):
    with pytest.raises(OnnxExportError, match='deploy='):
        exported(target='tensorrt')
    signed = {'symmetric': True, 'signed': True}
    found = exported(target='tensorrt', qconfig={'activation': signed})
    graph = onnx.load(str(found.path)).graph
    integers = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT32)
    }
    points = [v for k, v in integers.items() if k.endswith('zero_point')]
    assert points
    assert not any(point.any() for point in points)
    assert all(v.dtype == np.int8 for v in integers.values())


def test_tensorrt_adds_a_residual_on_a_grid_to_a_convolution(exported):
    found = exported(target='tensorrt', qconfig={'deploy': 'tensorrt'})
    graph = onnx.load(str(found.path)).graph
    makers = {name: node for node in graph.node for name in node.output}
    sums = [
        [makers[name] for name in node.input]
        for node in graph.node
        if node.op_type == 'Add' and all(x in makers for x in node.input)
    ]
    kinds = [sorted(node.op_type for node in sides) for sides in sums]
    # The first adds what a function returned, which has no grid of its own.
    assert kinds == [['Conv', 'Relu'], ['Conv', 'DequantizeLinear']]
    # Biases are floats there.
    types = {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.INT32 not in types
    assert found.report.added == {}


def test_the_file_runs_in_a_plain_session(exported):
    found = exported('transformer')
    plain = onnxruntime.InferenceSession(
        str(found.path), providers=['CPUExecutionProvider']
    )
    (got,) = plain.run(None, {'x': found.x.numpy()})
    assert np.isfinite(got).all()


class Windows(nn.Module):
    """Linear on the halves of each map, joined by their number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        halves = self.layer(x.reshape(-1, 3, 8).unflatten(1, (3, 1)))
        count = halves.shape[0] // 2
        return x + halves.view(count, 6, 8)


def test_code_that_counts_windows_leaves_the_batch_free(exported):
    torch.manual_seed(0)
    found = exported(
        Windows().eval(),
        batches=[torch.randn(4, 6, 8)],
        dynamic_axes={'x': {0: 'n'}, 'y': {0: 'n'}},
    )
    whole = run(found.path, found.x)
    np.testing.assert_allclose(run(found.path, found.x[:3]), whole[:3])


class Masked(nn.Module):
    """Attention with padding, in one row of everything."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        padding = x[..., 0] > 0.5
        return self.attention(x, x, x, key_padding_mask=padding)[0]


def test_attention_with_padding(exported):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 8)
    x[0, :, 0] = 1.0
    # Verification compares the file with the network.
    found = exported(Masked().eval(), batches=[x])
    got = run(found.path, x)
    assert np.isfinite(got).all()
    # No key is left: what remains is the bias, for all queries.
    assert (got[0] == got[0, 0]).all()


class Unread(nn.Module):
    """Two convolutions; no output depends on the second."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = self.first(x)
        self.last(x)
        return x


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino', 'tensorrt'])
def test_a_layer_that_no_output_depends_on_is_left_out(exported, target):
    qconfig = {'deploy': 'tensorrt'} if target == 'tensorrt' else {}
    found = exported(
        Unread().eval(),
        batches=[torch.randn(1, 3, 8, 8)],
        qconfig=qconfig,
        target=target,
    )
    report = found.report
    assert 'last.weight' in report.unused
    assert report.num_weights == 1
    assert 'no output depends on them' in report.text()
    names = [i.name for i in onnx.load(str(found.path)).graph.initializer]
    assert not [n for n in names if n.startswith('last')]


class Rectified(nn.Module):
    """Layers behind two and three ReLUs; the last ones are returned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.last = nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = self.first(x).relu().relu()
        x = self.second(x).relu().relu().relu()
        return x, self.last(x)


def test_a_second_relu_is_dropped(exported):
    # ONNX Runtime cannot even load a file with two in a row.
    found = exported(Rectified().eval(), batches=[torch.randn(1, 3, 8, 8)])
    nodes = onnx.load(str(found.path)).graph.node
    relus = [node for node in nodes if node.op_type == 'Relu']
    assert len(relus) == 2
    assert found.report.checks['float_layers'] == []


class Line(nn.Module):
    """Convolutions over points, as a head of points has them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 8, 1)
        self.last = nn.Conv1d(8, 5, 1)

    def forward(self, x):
        return self.last(self.first(x).relu())


def test_convolutions_over_one_axis(exported):
    torch.manual_seed(0)
    # Scales per channel of the output have two axes fewer than an image's.
    found = exported(Line().eval(), batches=[torch.randn(2, 3, 8)])
    assert found.report.checks['float_layers'] == []


def test_an_operator_without_a_form_is_named_without_the_graph(tmp_path):
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(OnnxExportError, match='linalg_inv') as error:
        export_onnx(
            Inverse(),
            (torch.eye(3)[None],),
            tmp_path / 'm.onnx',
            input_names=['x'],
            output_names=['y'],
        )
    text = str(error.value)
    assert 'Caused by' not in text
    assert 'submit a pull request' not in text
    assert text.endswith(
        "leave this part out of the exported network, or try exporter='dynamo'"
    )
