"""Small edits of ONNX graphs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


class Graph:
    """An ONNX graph with lookups that follow its edits.

    Args:
        model: The model; edited in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        self.constants: dict[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in self.proto.initializer
        }
        self.outputs = [value.name for value in self.proto.output]
        for i, node in enumerate(self.proto.node):
            node.name = node.name or f'{node.op_type}_{i}'
        self._names = {node.name for node in self.proto.node}
        self.refresh()

    def refresh(self) -> None:
        """Look producers and readers up again, after edits."""
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.proto.node:
            for name in node.output:
                self.producer[name] = node
            for name in dict.fromkeys(node.input):
                if name:
                    self.readers[name].append(node)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes, in order of execution."""
        nodes: Sequence[onnx.NodeProto] = self.proto.node
        return nodes

    def array(self, name: str) -> Array | None:
        """Return a constant's values, None for what is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add_constant(self, array: Array, name: str) -> str:
        """Add an initializer, unless that name holds the same already.

        Returns:
            Its name; with a suffix if another one has this name.
        """
        tensor = numpy_helper.from_array(np.array(array, order='C'), name)
        return self.add_tensor(tensor)

    def add_tensor(self, tensor: onnx.TensorProto) -> str:
        """Add an initializer; see :meth:`add_constant`."""
        stem, count = tensor.name, 0
        while True:
            found = self.constants.get(tensor.name)
            if found is None:
                self.constants[tensor.name] = tensor
                return tensor.name
            if same_tensor(found, tensor):
                return tensor.name
            count += 1
            tensor.name = f'{stem}_{count}'

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str,
        domain: str = '',
        **attributes: Any,
    ) -> onnx.NodeProto:
        """Make a node with a name of its own; it is not in the graph yet."""
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f'{name}_{count}'
        self._names.add(unique)
        return helper.make_node(
            kind, inputs, outputs, name=unique, domain=domain, **attributes
        )

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Set all nodes, in order of execution."""
        kept = list(nodes)
        del self.proto.node[:]
        self.proto.node.extend(kept)
        self.refresh()

    def redirect(self, old: str, new: str, *, but: Sequence[str] = ()) -> None:
        """Let the readers of a tensor read another one.

        Args:
            old: The tensor.
            new: What is read instead.
            but: Names of nodes that stay as they are.
        """
        for node in self.readers.get(old, []):
            if node.name in but:
                continue
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
        self.refresh()

    def rename_output(self, name: str) -> str:
        """Free the name of an output of the graph for another tensor.

        Returns:
            What the tensor is called now.
        """
        new = f'{name}_before_grid'
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, found in enumerate(names):
                    if found == name:
                        names[i] = new
        self.refresh()
        return new

    def finish(self) -> None:
        """Drop what nothing reads, and write the constants back."""
        self.drop_unread()
        used = {name for node in self.nodes for name in node.input}
        used |= set(self.outputs)
        del self.proto.initializer[:]
        self.proto.initializer.extend(
            tensor for name, tensor in self.constants.items() if name in used
        )

    def drop_unread(self) -> None:
        """Remove nodes whose outputs nothing reads."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                needed |= set(node.input)
                needed |= inner_reads(node)
                kept.append(node)
        self.replace_nodes(list(reversed(kept)))


def inner_reads(node: onnx.NodeProto) -> set[str]:
    """Return what the graphs inside of a node read."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*attribute.graphs, attribute.g):
            for inner in graph.node:
                found |= set(inner.input) | inner_reads(inner)
            found |= {value.name for value in graph.output}
    return found


def same_tensor(first: onnx.TensorProto, second: onnx.TensorProto) -> bool:
    """Whether two constants have the same type, shape and values."""
    if (first.data_type, list(first.dims)) != (
        second.data_type,
        list(second.dims),
    ):
        return False
    return digest(first) == digest(second)


def digest(tensor: onnx.TensorProto) -> bytes:
    """Return a digest of a constant's values."""
    array = numpy_helper.to_array(tensor)
    return hashlib.sha256(array.tobytes()).digest()


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def drop_wrong_sizes(
    model: onnx.ModelProto, free: Mapping[str, Mapping[int, str]]
) -> None:
    """Forget sizes of inner tensors by which a runtime would share memory.

    With a free height and width they are those of the example. Otherwise
    some have names that the exporter gives to tensors of several sizes.

    Args:
        model: As traced; edited in place.
        free: Input or output -> axis -> name of its free size.
    """
    known = {label for axes in free.values() for label in axes.values()}
    sized = any(set(axes) - {0} for axes in free.values())
    kept = [
        value
        for value in model.graph.value_info
        if not sized
        and known.issuperset(
            dim.dim_param
            for dim in value.type.tensor_type.shape.dim
            if dim.dim_param
        )
    ]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def constants_to_initializers(graph: Graph) -> None:
    """Turn Constant nodes, and second names of constants, into initializers.

    The exporter stores equal parameters once, with Identity for the others.
    """
    kept = []
    for node in graph.nodes:
        value = None
        if node.op_type == 'Constant':
            value = attribute(node, 'value')
        elif node.op_type == 'Identity':
            value = graph.constants.get(node.input[0])
        if value is None or node.output[0] in graph.outputs:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.constants[tensor.name] = tensor
    graph.replace_nodes(kept)
