import pytest
import torch

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from onnx import TensorProto, helper, numpy_helper

from taskptq.export.runtime import (
    OnnxFileError,
    Session,
    Simulation,
    is_onnx_path,
    read_onnx,
)


def model(*, domain='', op='Add', shape=('batch', 3), external=False):
    weight = numpy_helper.from_array(torch.ones(3).numpy(), name='w')
    if external:
        weight.ClearField('raw_data')
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = 'location', '/etc/passwd'
    graph = helper.make_graph(
        [helper.make_node(op, ['x', 'w'], ['y'], domain=domain)],
        'graph',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, shape)],
        [weight],
    )
    opsets = [helper.make_opsetid('', 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(made, {'who': 'test'})
    return made


@pytest.fixture
def written(tmp_path):
    def write(made, name='m.onnx'):
        path = tmp_path / name
        path.write_bytes(
            made if isinstance(made, bytes) else made.SerializeToString()
        )
        return path

    return write


def test_a_file_runs(written):
    file = read_onnx(written(model()))
    assert file.metadata == {'who': 'test'}
    session = Session(file, threads=1)
    x = torch.randn(4, 3)
    assert session.ports[0].shape == (None, 3)
    assert torch.equal(session(x)['y'], x + 1)
    assert session(x[:0])['y'].shape == (0, 3)


def test_a_file_of_one_image_runs_a_batch_image_by_image(written):
    session = Session(read_onnx(written(model(shape=(1, 3)))), threads=1)
    x = torch.randn(4, 3)
    assert torch.equal(session(x)['y'], x + 1)
    other = Session(read_onnx(written(model(shape=(2, 3)))), threads=1)
    with pytest.raises(ValueError, match='takes x of 2x3, but it is 4x3'):
        other(x)


def test_a_simulation_runs_each_operator_as_it_stands(written):
    def numbers(name, values, kind):
        return helper.make_tensor(name, kind, (), values)

    float32, uint8 = TensorProto.FLOAT, TensorProto.UINT8
    nodes = [('QuantizeLinear', 'x', 'q'), ('DequantizeLinear', 'q', 'y')]
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, [x, 's', 'z'], [y]) for op, x, y in nodes],
            'graph',
            [helper.make_tensor_value_info('x', float32, ('batch', 3))],
            [helper.make_tensor_value_info('y', float32, ('batch', 3))],
            [numbers('s', [0.5], float32), numbers('z', [3], uint8)],
        ),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )
    file = read_onnx(written(made))
    session = Simulation(file, threads=1)
    level = session._session.get_session_options().graph_optimization_level
    assert 'DISABLE_ALL' in str(level)
    found = session(torch.tensor([[0.2, -9.0, 1.25]]))['y']
    assert found.tolist() == [[0.0, -1.5, 1.0]]


@pytest.mark.parametrize('tensors', [(), (1, 2)])
def test_the_number_of_inputs_is_checked(written, tensors):
    session = Session(read_onnx(written(model())), threads=1)
    with pytest.raises(ValueError, match='takes 1 inputs'):
        session(*(torch.zeros(1, 3) for _ in tensors))


@pytest.mark.parametrize('shape', [(2, 4), (2, 3, 1)])
def test_another_size_is_refused(written, shape):
    session = Session(read_onnx(written(model())), threads=1)
    with pytest.raises(ValueError, match=r'takes x of \?x3, but it is 2x'):
        session(torch.zeros(shape))


def inner(made):
    """Hide a model's weight in a branch of an If."""
    graph = made.graph
    branch = helper.make_graph(
        list(graph.node), 'branch', [], list(graph.output), graph.initializer
    )
    outer = helper.make_graph(
        [
            helper.make_node(
                'If', ['c'], ['y'], then_branch=branch, else_branch=branch
            )
        ],
        'outer',
        [helper.make_tensor_value_info('c', TensorProto.BOOL, [])],
        list(graph.output),
    )
    return helper.make_model(outer, opset_imports=made.opset_import)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'holds no ONNX graph'),
        (b'not a model at all', 'damaged or not an ONNX file|no ONNX graph'),
        (model().SerializeToString()[:60], 'damaged|no ONNX graph'),
        (model(external=True), "keeps the tensor 'w' in another file"),
        (inner(model(external=True)), 'in another file, which is never read'),
        (model(domain='evil.ops'), "operators of the domain 'evil.ops'"),
        (inner(model(domain='evil.ops')), "the domain 'evil.ops'"),
    ],
)
def test_what_is_refused(written, content, message):
    path = written(content)
    with pytest.raises(OnnxFileError, match=message) as error:
        read_onnx(path)
    assert str(path) in str(error.value)


def test_an_operator_that_the_runtime_lacks(written):
    file = read_onnx(written(model(op='NoSuchOperator')))
    with pytest.raises(OnnxFileError, match='refused by ONNX Runtime'):
        Session(file)


def test_operators_of_a_version_that_the_runtime_lacks(written):
    made = model()
    made.opset_import[0].version = 99
    with pytest.raises(OnnxFileError, match='perhaps with a lower --opset'):
        Session(read_onnx(written(made)))


def test_a_constant_in_another_file(written):
    made = model()
    tensor = model(external=True).graph.initializer[0]
    node = helper.make_node('Constant', [], ['c'], value=tensor)
    made.graph.node.append(node)
    with pytest.raises(OnnxFileError, match='in another file'):
        read_onnx(written(made))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no ONNX file'):
        read_onnx(tmp_path / 'm.onnx')


def test_paths():
    assert is_onnx_path('a/B.ONNX')
    assert not is_onnx_path('a/b.pth')
    assert not is_onnx_path(None)
