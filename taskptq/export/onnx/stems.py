"""Let strided stems read blocks of the image as channels.

A first convolution of stride s sees three channels, of which ONNX Runtime's
integer kernels gather k * k short rows for each output: in a small detector
it takes a third of the time, more than in floats. With each s x s block of
the image as s * s channels it has stride 1, a kernel of about k / s, and rows
that are s * s times as long. The sums are the same: what the larger kernel
adds has weights of zero.

Along one axis, let an output o read the pixels s * o + i - p, with i of 0 to
k - 1 and padding p. With b = ceil(p / s) blocks of padding and the offset
d = s * b - p, pixel s * (o + m - b) + r has weight number s * m + r - d,
or none, for block m and place r in it. Sizes that are no multiple of s get
rows of zeros behind, which take the place of padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from taskptq.export.onnx.graph import Array, Graph, attribute
from taskptq.export.onnx.passes import is_weight

# With more channels the rows are long enough.
MOST_CHANNELS = 4
SPATIAL = 2


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a stem.

    Args:
        size: Pixels of the image.
        kernel: Weights of the kernel.
        stride: Pixels between two outputs.
        before: Padding in front.
        after: Padding behind.
    """

    size: int
    kernel: int
    stride: int
    before: int
    after: int

    @property
    def offset(self) -> int:
        """Zero weights in front of the kernel."""
        return self.blocks_before * self.stride - self.before

    @property
    def blocks(self) -> int:
        """Length of the new kernel."""
        return -(-(self.offset + self.kernel) // self.stride)

    @property
    def blocks_before(self) -> int:
        """Padding in front, in blocks."""
        return -(-self.before // self.stride)

    @property
    def blocks_after(self) -> int:
        """Padding behind, in blocks; negative if it is too short."""
        padded = self.size + self.before + self.after
        outputs = (padded - self.kernel) // self.stride + 1
        known = self.whole // self.stride + self.blocks_before
        return outputs + self.blocks - 1 - known

    @property
    def whole(self) -> int:
        """The size, up to a multiple of the stride."""
        return -(-self.size // self.stride) * self.stride


def fold_strides(graph: Graph) -> list[str]:
    """Turn the strides of stems into channels.

    Only images of a fixed size can be cut into blocks.

    Args:
        graph: Graph of standard operators; edited in place.

    Returns:
        Names of the convolutions.
    """
    # Code 0 of the larger kernel is the value 0 of a weight without zero
    # point alone.
    nodes: list[onnx.NodeProto] = []
    done = []
    for node in graph.nodes:
        axes = _axes(graph, node)
        if axes is not None:
            nodes += _folded(graph, node, axes)
            done.append(node.name)
        nodes.append(node)
    graph.replace_nodes(nodes)
    return done


def _axes(graph: Graph, node: onnx.NodeProto) -> tuple[Axis, Axis] | None:
    """Return height and width of a stem, None for what is no stem."""
    if node.op_type != 'Conv' or attribute(node, 'group', 1) > 1:
        return None
    strides = attribute(node, 'strides', [1])
    whole = attribute(node, 'auto_pad', b'NOTSET') == b'NOTSET'
    if len(set(strides)) > 1 or strides[0] < 2 or not whole:
        return None
    source, weight = (graph.producer.get(name) for name in node.input[:2])
    if source is None or weight is None or not is_weight(weight, graph):
        return None
    codes, sizes = graph.array(weight.input[0]), _image(graph, source)
    scale, zero_point = (graph.array(name) for name in weight.input[1:])
    if codes is None or sizes is None or scale is None:
        return None
    if zero_point is not None and zero_point.any():
        return None
    along_inputs = scale.ndim > 0 and attribute(weight, 'axis', 1) != 0
    if codes.ndim != 4 or codes.shape[1] > MOST_CHANNELS or along_inputs:
        return None
    if set(attribute(node, 'dilations', [1])) != {1}:
        return None
    pads = attribute(node, 'pads', [0] * 4)
    height, width = (
        Axis(
            size=size,
            kernel=codes.shape[i + SPATIAL],
            stride=strides[0],
            before=pads[i],
            after=pads[i + SPATIAL],
        )
        for i, size in enumerate(sizes)
    )
    fits = all(axis.blocks_after >= 0 for axis in (height, width))
    return (height, width) if fits else None


def _image(graph: Graph, source: onnx.NodeProto) -> list[int] | None:
    """Return height and width of an input of the graph on one grid."""
    if source.op_type != 'DequantizeLinear':
        return None
    scale = graph.array(source.input[1])
    quantize = graph.producer.get(source.input[0])
    if quantize is None or quantize.op_type != 'QuantizeLinear':
        return None
    if scale is None or scale.ndim:
        return None
    for value in graph.proto.input:
        if value.name == quantize.input[0]:
            sides = value.type.tensor_type.shape.dim[SPATIAL:]
            sizes = [side.dim_value for side in sides]
            return sizes if len(sizes) == 2 and all(sizes) else None
    return None


def _folded(
    graph: Graph, node: onnx.NodeProto, axes: tuple[Axis, Axis]
) -> list[onnx.NodeProto]:
    """Let a stem read blocks; return the nodes that make them."""
    source = graph.producer[node.input[0]]
    weight = graph.producer[node.input[1]]
    codes = graph.array(weight.input[0])
    assert codes is not None
    stem = f'{weight.input[0]}.{node.name.strip("/").replace("/", ".")}'
    blocks = graph.node(
        'DequantizeLinear',
        [
            graph.add_constant(fold_weight(codes, axes), f'{stem}.codes'),
            *weight.input[1:],
        ],
        [f'{node.name}/blocks_weight'],
        name=f'{node.name}/blocks_weight/DequantizeLinear',
    )
    blocks.attribute.extend(weight.attribute)
    made = _as_channels(graph, source, node, axes, count=codes.shape[1])
    node.input[0], node.input[1] = made[-1].output[0], blocks.output[0]
    changed = {
        'kernel_shape': [axis.blocks for axis in axes],
        'strides': [1, 1],
        'pads': [
            *(axis.blocks_before for axis in axes),
            *(axis.blocks_after for axis in axes),
        ],
    }
    kept = [a for a in node.attribute if a.name not in changed]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(
        helper.make_attribute(name, value) for name, value in changed.items()
    )
    return [*made, blocks]


def fold_weight(codes: Array, axes: tuple[Axis, Axis]) -> Array:
    """Return the weight that reads blocks.

    Args:
        codes: Weight (out, in, height, width).
        axes: Height and width of the stem.

    Returns:
        Weight (out, width of block * in * height of block, ...).
    """
    height, width = axes
    outputs, inputs = codes.shape[:2]
    whole = np.zeros(
        (
            *(outputs, inputs),
            *(axis.blocks * axis.stride for axis in axes),
        ),
        codes.dtype,
    )
    rows, columns = (
        slice(axis.offset, axis.offset + axis.kernel) for axis in axes
    )
    whole[:, :, rows, columns] = codes
    split = whole.reshape(
        *(outputs, inputs),
        *(height.blocks, height.stride, width.blocks, width.stride),
    )
    return split.transpose(0, 5, 1, 3, 2, 4).reshape(
        outputs, -1, height.blocks, width.blocks
    )


def _as_channels(
    graph: Graph,
    source: onnx.NodeProto,
    node: onnx.NodeProto,
    axes: tuple[Axis, Axis],
    *,
    count: int,
) -> list[onnx.NodeProto]:
    """Return the nodes that make blocks of codes channels.

    Rows move as a whole. Then channels come last, as the runtime's kernels
    read them, so that the pixels of a row lie side by side, and the last
    transposition goes away with that of the runtime.
    """
    (height, width), name = axes, f'{node.name}/blocks'
    stride = height.stride
    rows, columns = height.whole // stride, width.whole // stride
    shapes = (
        (0, count, rows, stride, width.whole),
        (0, count * stride, rows, width.whole),
        (0, rows, columns, stride * stride * count),
    )
    split, stacked, merged = (
        graph.add_constant(np.array(shape, np.int64), f'{name}.shape')
        for shape in shapes
    )
    steps: list[str | list[int]] = [
        split,
        [0, 1, 3, 2, 4],
        stacked,
        [0, 2, 3, 1],
        merged,
        [0, 3, 1, 2],
    ]
    made, last = _padded(graph, source, axes, name=name)
    for i, step in enumerate(steps):
        before, last = last, f'{name}/{i}'
        if isinstance(step, str):
            kind, inputs, more = 'Reshape', [before, step], {}
        else:
            kind, inputs, more = 'Transpose', [before], {'perm': step}
        made.append(
            graph.node(
                kind,
                inputs,
                [last],
                name=f'{name}/{kind}',
                domain='',
                **more,
            )
        )
    made.append(
        graph.node(
            'DequantizeLinear',
            [last, *source.input[1:]],
            [f'{name}/on_grid'],
            name=f'{name}/DequantizeLinear',
        )
    )
    return made


def _padded(
    graph: Graph, source: onnx.NodeProto, axes: tuple[Axis, Axis], *, name: str
) -> tuple[list[onnx.NodeProto], str]:
    """Return what makes the codes of whole blocks, and their name."""
    codes = source.input[0]
    behind = [axis.whole - axis.size for axis in axes]
    if not any(behind):
        return [], codes
    pads = np.array([0, 0, 0, 0, 0, 0, *behind], np.int64)
    node = graph.node(
        'Pad',
        [codes, graph.add_constant(pads, f'{name}.pads'), source.input[2]],
        [f'{name}/whole'],
        name=f'{name}/Pad',
    )
    return [node], node.output[0]
