"""ONNX files as a runtime executes them: checked, opened, called.

A file is checked before a runtime sees it: it must be one whole file that
names no other file, and hold operators of known domains only, so that nothing
outside of it is read and no library is loaded for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskptq.export.errors import OnnxFileError, shown
from taskptq.export.optional import runtime_package

__all__ = [
    'OnnxFile',
    'OnnxFileError',
    'Port',
    'Session',
    'Simulation',
    'is_onnx_path',
    'onnxruntime_errors',
    'read_onnx',
    'runtime_package',
]

# How files of torch.save begin.
ZIP = b'PK\x03\x04'
# Domains whose operators the runtimes themselves define.
DOMAINS = frozenset(
    {
        '',
        'ai.onnx',
        'ai.onnx.ml',
        'com.microsoft',
        'com.microsoft.nchwc',
        'com.ms.internal.nhwc',
    }
)
# Protobuf's own limit for a message, and so for a file without external data.
MAX_BYTES = 2**31 - 1
# What ONNX Runtime calls the types of inputs that tensors can be fed to.
DTYPES = {
    'tensor(float)': torch.float32,
    'tensor(double)': torch.float64,
    'tensor(float16)': torch.float16,
    'tensor(int64)': torch.int64,
    'tensor(int32)': torch.int32,
    'tensor(uint8)': torch.uint8,
    'tensor(int8)': torch.int8,
    'tensor(bool)': torch.bool,
}


def is_onnx_path(path: str | Path | None) -> bool:
    """Return whether a path is that of an ONNX file, by its suffix."""
    return path is not None and str(path).lower().endswith('.onnx')


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX file.

    Args:
        path: The file.
        content: Its bytes.
        metadata: Its ``metadata_props``.
    """

    path: Path
    content: bytes
    metadata: Mapping[str, str]

    def proto(self) -> Any:
        """Parse the file again, as a ModelProto that may be changed."""
        return runtime_package('onnx').ModelProto.FromString(self.content)


def read_onnx(path: str | Path) -> OnnxFile:
    """Read and check an ONNX file without running or resolving any of it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        OnnxFileError: If it is damaged, not ONNX, refers to other files, or
            uses operators that need a library of their own.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no ONNX file {path}')
    if path.stat().st_size > MAX_BYTES:
        raise OnnxFileError(
            f'{path} has more than 2 GiB, which no ONNX file without external '
            'data has: export the model again'
        )
    content = path.read_bytes()
    model = _parsed(content, path)
    for name in _external_tensors(model):
        raise OnnxFileError(
            f'{path} keeps the tensor {shown(name)} in another file, which is '
            'never read: save it as one file, without external data'
        )
    foreign = sorted({n.domain for n in _nodes(model)} - _known(model))
    if foreign:
        raise OnnxFileError(
            f'{path} needs operators of the domain {shown(foreign[0])}, which '
            'no runtime here defines: export the model again without them'
        )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxFile(path=path, content=content, metadata=metadata)


def _parsed(content: bytes, path: Path) -> Any:
    onnx = runtime_package('onnx')
    errors = importlib.import_module('google.protobuf.message')
    try:
        model = onnx.ModelProto.FromString(content)
    except errors.DecodeError as error:
        raise OnnxFileError(
            f'{path} is a checkpoint, not an ONNX file: export it first '
            '(taskptq export)'
            if content.startswith(ZIP)
            else f'{path} is damaged or not an ONNX file: export it again'
        ) from error
    # Nearly any short text parses as an empty message.
    if not model.graph.node or not model.opset_import:
        raise OnnxFileError(
            f'{path} holds no ONNX graph: give a file of taskptq export'
        )
    return model


def _known(model: Any) -> set[str]:
    """Return the domains of which a file's nodes may be."""
    return set(DOMAINS) | {function.domain for function in model.functions}


def _graphs(model: Any) -> Iterator[Any]:
    """Yield the graph and functions of a model, and all graphs in them."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs]
                if attribute.HasField('g'):
                    waiting.append(attribute.g)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor that a file stores."""
    for graph in _graphs(model):
        if hasattr(graph, 'initializer'):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (
                    attribute.sparse_tensor,
                    *attribute.sparse_tensors,
                ):
                    yield from (sparse.values, sparse.indices)


def _external_tensors(model: Any) -> Iterator[str]:
    external = runtime_package('onnx').TensorProto.EXTERNAL
    for tensor in _tensors(model):
        if tensor.data_location == external or tensor.external_data:
            yield tensor.name


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input of a session.

    Args:
        name: Its name.
        shape: Its sizes; None where any is accepted.
        dtype: Its type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


class Session:
    """An ONNX file in ONNX Runtime, from tensors to tensors by name.

    Args:
        file: The checked file.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        OnnxFileError: If the runtime refuses the file.
    """

    def __init__(self, file: OnnxFile, *, threads: int | None = None) -> None:
        runtime = runtime_package('onnxruntime')
        options = self._options(runtime)
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.path = file.path
        try:
            self._session = runtime.InferenceSession(
                file.content, options, providers=['CPUExecutionProvider']
            )
        except onnxruntime_errors() as error:
            raise OnnxFileError(
                f'{file.path} is refused by ONNX Runtime '
                f'{runtime.__version__} ({first_line(error)}): export it '
                'again, perhaps with a lower --opset'
            ) from error
        self.ports = tuple(self._read_ports())
        self.output_names = tuple(
            output.name for output in self._session.get_outputs()
        )
        self.output_shapes = {
            output.name: _sizes(output.shape)
            for output in self._session.get_outputs()
        }

    def _options(self, runtime: Any) -> Any:
        """Return the settings of the runtime but for its threads."""
        options = runtime.SessionOptions()
        options.inter_op_num_threads = 1
        # Errors are raised, and no more said beside them.
        options.log_severity_level = 4
        return options

    def _read_ports(self) -> Iterator[Port]:
        for node in self._session.get_inputs():
            if node.type not in DTYPES:
                raise OnnxFileError(
                    f'{self.path} has the input {shown(node.name)} of type '
                    f'{node.type}: give a file of taskptq export'
                )
            yield Port(
                name=node.name,
                shape=_sizes(node.shape),
                dtype=DTYPES[node.type],
            )

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Run the file.

        Args:
            *tensors: Its inputs, in order.

        Returns:
            Its outputs by name, on the device of the first input.

        Raises:
            ValueError: If number or sizes of the inputs do not fit.
            OnnxFileError: If the runtime fails.
        """
        if self._takes_one_of(tensors):
            return self._one_by_one(tensors)
        self.check(tensors)
        device = tensors[0].device
        if any(tensor.numel() == 0 for tensor in tensors):
            return self._nothing(len(tensors[0]), device)
        feed = {
            port.name: tensor.detach()
            .to('cpu', port.dtype)
            .contiguous()
            .numpy()
            for port, tensor in zip(self.ports, tensors, strict=True)
        }
        outputs = self._run(feed)
        return {
            name: torch.from_numpy(output).to(device)
            for name, output in zip(self.output_names, outputs, strict=True)
        }

    def _takes_one_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the file takes one image, and this is a batch of them."""
        single = all(port.shape[:1] == (1,) for port in self.ports)
        counts = {tensor.shape[:1] for tensor in tensors}
        return single and len(counts) == 1 and max(counts) > (1,)

    def _one_by_one(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Run the images of a batch one after the other."""
        runs = [
            self(*(tensor[i : i + 1] for tensor in tensors))
            for i in range(len(tensors[0]))
        ]
        # An output of another size, such as a weight, is not of an image.
        return {
            name: torch.cat([run[name] for run in runs])
            if first.shape[:1] == (1,)
            else first
            for name, first in runs[0].items()
        }

    def _run(self, feed: dict[str, Any]) -> Sequence[Any]:
        """Return the outputs, in order, as NumPy arrays."""
        try:
            outputs: Sequence[Any] = self._session.run(None, feed)
        except onnxruntime_errors() as error:
            raise OnnxFileError(
                f'{self.path} fails in ONNX Runtime: {first_line(error)}'
            ) from error
        return outputs

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Compare inputs with what the file takes.

        Raises:
            ValueError: If number or sizes do not fit.
        """
        if len(tensors) != len(self.ports):
            raise ValueError(
                f'{self.path} takes {len(self.ports)} inputs and was given '
                f'{len(tensors)}: it belongs to another model'
            )
        for port, tensor in zip(self.ports, tensors, strict=True):
            sizes = tuple(tensor.shape)
            fits = len(sizes) == len(port.shape) and all(
                known is None or known == size
                for known, size in zip(port.shape, sizes, strict=True)
            )
            if not fits:
                raise ValueError(
                    f'{self.path} takes {port.name} of '
                    f'{_by_x(port.shape)}, but it is {_by_x(sizes)} here: '
                    'export with this --size, or with --dynamic'
                )

    def _nothing(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Return empty outputs, which some operators cannot compute."""
        return {
            name: torch.zeros(
                (count, *(size or 0 for size in shape[1:])), device=device
            )
            for name, shape in self.output_shapes.items()
        }


class Simulation(Session):
    """A file whose operators are computed as they stand, one by one.

    What integers are compared with: products, with all grids that an export
    added, in floats.
    """

    def _options(self, runtime: Any) -> Any:
        """Turn all optimization off, so that no operator is fused."""
        options = super()._options(runtime)
        options.graph_optimization_level = (
            runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        return options


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of ONNX Runtime, which have no common base."""
    module = importlib.import_module(
        'onnxruntime.capi.onnxruntime_pybind11_state'
    )
    return (
        RuntimeError,
        *(
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Exception)
        ),
    )


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """Return an error's first line, short, for a message."""
    line = str(error).strip().partition('\n')[0].rstrip('.')
    return line if len(line) <= limit else f'{line[: limit - 3]}...'


def _sizes(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _by_x(sizes: Sequence[int | None]) -> str:
    return 'x'.join('?' if size is None else str(size) for size in sizes)
