import numpy as np
import onnx
from onnx import TensorProto, helper

from taskptq.export.onnx.graph import (
    Graph,
    constants_to_initializers,
    drop_wrong_sizes,
    inner_reads,
)


def graph_of(*nodes, constants=(), outputs=('y',)):
    """A graph of nodes; constants are (name, array)."""
    proto = helper.make_graph(
        nodes,
        'graph',
        [helper.make_empty_tensor_value_info('x')],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants],
    )
    return Graph(helper.make_model(proto))


def test_a_constant_keeps_its_shape_and_is_stored_once():
    graph = graph_of(helper.make_node('Relu', ['x'], ['y']))
    assert graph.add_constant(np.array(1.0), 'c') == 'c'
    assert graph.add_constant(np.array(1.0), 'c') == 'c'
    assert graph.add_constant(np.array(2.0), 'c') == 'c_1'
    assert graph.array('c').shape == ()
    assert graph.array('x') is None


def test_what_nothing_reads_goes():
    graph = graph_of(
        helper.make_node('Relu', ['x'], ['y']),
        helper.make_node('Add', ['x', 'unread'], ['z']),
        constants=[('unread', np.zeros(1, np.float32))],
    )
    graph.finish()
    assert [node.op_type for node in graph.nodes] == ['Relu']
    assert not graph.proto.initializer


def test_second_names_of_constants_become_constants():
    graph = graph_of(
        helper.make_node('Identity', ['c'], ['d']),
        helper.make_node('Add', ['x', 'd'], ['y']),
        constants=[('c', np.ones(2, np.float32))],
    )
    constants_to_initializers(graph)
    assert [node.op_type for node in graph.nodes] == ['Add']
    np.testing.assert_array_equal(graph.array('d'), np.ones(2))


def test_an_output_keeps_its_name_for_another_tensor():
    graph = graph_of(
        helper.make_node('Relu', ['x'], ['y']),
        helper.make_node('Relu', ['y'], ['z']),
    )
    name = graph.rename_output('y')
    assert graph.nodes[0].output[0] == graph.nodes[1].input[0] == name
    assert graph.outputs == ['y']


def test_reads_inside_a_branch_count():
    inner = helper.make_graph(
        [helper.make_node('Relu', ['outside'], ['o'])],
        'inner',
        [],
        [helper.make_empty_tensor_value_info('o')],
    )
    node = helper.make_node(
        'If', ['x'], ['y'], then_branch=inner, else_branch=inner
    )
    assert 'outside' in inner_reads(node)


def test_sizes_that_the_exporter_made_up_are_dropped():
    def names(free):
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (
                ('fixed', [2, 3]),
                ('free', ['batch', 3]),
                ('invented', ['batch', 'Conv_dim_2']),
            )
        ]
        graph = helper.make_graph([], 'g', [], [], value_info=values)
        model = helper.make_model(graph)
        drop_wrong_sizes(model, free)
        return [value.name for value in model.graph.value_info]

    assert names({'x': {0: 'batch'}}) == ['fixed', 'free']
    assert names({}) == ['fixed']
    assert names({'x': {0: 'batch', 2: 'height'}}) == []
