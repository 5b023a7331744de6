import pytest
import torch

pytest.importorskip('onnx', reason='needs taskptq[onnx]')
pytest.importorskip('onnxruntime', reason='needs taskptq[onnx]')

import numpy as np
import onnx
from onnx import TensorProto, helper
from runtimes import find_runtime

from taskptq.core.setting_error import SettingError
from taskptq.export import runtime
from taskptq.export.openvino_session import OpenVinoSession, open_session
from taskptq.export.runtime import OnnxFileError, Session, read_onnx


@pytest.fixture
def openvino():
    return find_runtime('openvino')


@pytest.fixture
def file(tmp_path):
    """Return a function that writes y = op(x), z = -x and reads the file."""

    def write(op='Abs', kind=TensorProto.FLOAT):
        x, y, z = (
            helper.make_tensor_value_info(name, kind, ['batch', 3])
            for name in 'xyz'
        )
        nodes = [
            helper.make_node(op, ['x'], ['y']),
            helper.make_node('Neg', ['x'], ['z']),
        ]
        model = helper.make_model(
            helper.make_graph(nodes, 'graph', [x], [y, z]),
            opset_imports=[helper.make_opsetid('', 17)],
            ir_version=8,
        )
        onnx.save(model, str(tmp_path / 'm.onnx'))
        return read_onnx(tmp_path / 'm.onnx')

    return write


def test_both_runtimes_are_called_alike(openvino, file):
    ours = open_session(file(), runtime='openvino', threads=1)
    known = open_session(file(), threads=1)
    assert type(ours) is OpenVinoSession
    assert type(known) is Session
    assert ours.ports == known.ports
    assert ours.output_shapes == known.output_shapes
    x = torch.randn(4, 3)
    found, expected = ours(x), known(x)
    assert list(found) == list(expected) == ['y', 'z']
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert ours(x[:0])['y'].shape == (0, 3)


def test_outputs_outlive_the_next_run(openvino, file):
    session = OpenVinoSession(file(), threads=1)
    first = session(torch.ones(1, 3))['y']
    session(torch.zeros(1, 3))
    assert first.tolist() == [[1, 1, 1]]


def test_the_first_shapes_are_compiled_for(openvino, file):
    session = OpenVinoSession(file(), threads=1)
    for count in (4, 1, 4, 2, 1):
        x = torch.arange(3.0 * count).reshape(count, 3) - 2
        assert session(x)['y'].tolist() == x.abs().tolist()
    assert list(session._shapes) == [((4, 3),), ((1, 3),)]
    own = [s.inputs[0].partial_shape for s in session._shapes.values()]
    assert not any(shape.is_dynamic for shape in own)


@pytest.mark.parametrize('kind', [TensorProto.INT64, TensorProto.DOUBLE])
def test_types_of_inputs(openvino, file, kind):
    session = OpenVinoSession(file(kind=kind), threads=1)
    found = session(torch.tensor([[-1.0, 2.0, 3.0]]))['y']
    assert found.tolist() == [[1, 2, 3]]


def test_another_size_is_refused(openvino, file):
    session = OpenVinoSession(file(), threads=1)
    with pytest.raises(ValueError, match=r'takes x of \?x3, but it is 2x4'):
        session(torch.zeros(2, 4))


def test_an_operator_that_openvino_lacks(openvino, file):
    with pytest.raises(OnnxFileError, match='refused by OpenVINO') as error:
        OpenVinoSession(file(op='NoSuchOperator'))
    assert 'Exception from' not in str(error.value)


def test_an_exported_file_computes_the_same_in_openvino(openvino, tmp_path):
    from taskptq.calibration.calibrate import calibrate
    from taskptq.export.onnx import export_onnx
    from taskptq.prepare import QConfig, prepare
    from taskptq.reconstruction.freeze import freeze
    from taskptq.testing.models import tiny_batches, tiny_model

    model, batches = tiny_model('conv'), tiny_batches('conv')
    prepare(model, QConfig.from_dict({}), batch=batches[0])
    calibrate(model, batches, forward=lambda m, x: m(x))
    freeze(model)
    path = tmp_path / 'model.onnx'
    export_onnx(
        model,
        (batches[0],),
        path,
        input_names=['x'],
        output_names=['y'],
        target='openvino',
    )
    session = open_session(read_onnx(path), runtime='openvino', threads=1)
    with torch.no_grad():
        expected = model(batches[0])
    noise = session(batches[0])['y'] - expected
    ratio = expected.square().mean() / noise.square().mean()
    assert 10 * np.log10(float(ratio)) > 20


def test_an_unknown_runtime_is_refused(file):
    with pytest.raises(SettingError, match='onnxruntime, openvino'):
        open_session(file(), runtime='tensorrt')


def test_without_openvino_one_sentence_says_so(file, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name, name=name)

    checked = file()
    monkeypatch.setattr(runtime.importlib, 'import_module', missing)
    with pytest.raises(OnnxFileError, match=r'taskptq\[openvino\]'):
        open_session(checked, runtime='openvino')
