"""ONNX files in OpenVINO, and the choice between the runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from taskptq.core.setting_error import refuse
from taskptq.export.errors import shown
from taskptq.export.runtime import (
    OnnxFile,
    OnnxFileError,
    Port,
    Session,
    Simulation,
    first_line,
    runtime_package,
)

__all__ = ['ONNXRUNTIME', 'RUNTIMES', 'OpenVinoSession', 'open_session']

ONNXRUNTIME = 'onnxruntime'
# What OpenVINO calls the types of inputs that tensors can be fed to.
DTYPES = {
    'f32': torch.float32,
    'f64': torch.float64,
    'f16': torch.float16,
    'i64': torch.int64,
    'i32': torch.int32,
    'u8': torch.uint8,
    'i8': torch.int8,
    'boolean': torch.bool,
}


# So many shapes of inputs get a graph of their own, the others share one.
MOST_SHAPES = 2


class OpenVinoSession(Session):
    """An ONNX file in OpenVINO on the CPU, from tensors to tensors by name.

    What is not quantized is computed in float32: OpenVINO would choose
    bfloat16 on CPUs that have it, and the metrics would mix both effects.
    Shapes that come first are compiled for: where a batch is free, OpenVINO
    takes a tenth to a quarter more time.

    Args:
        file: The checked file.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        OnnxFileError: If OpenVINO is not installed, or refuses the file.
    """

    def __init__(self, file: OnnxFile, *, threads: int | None = None) -> None:
        runtime = runtime_package('openvino')
        settings = {
            'INFERENCE_NUM_THREADS': threads or torch.get_num_threads(),
            'NUM_STREAMS': 1,
            'INFERENCE_PRECISION_HINT': 'f32',
        }
        self.path = file.path
        core = runtime.Core()
        self._shapes: dict[tuple[tuple[int, ...], ...], Any] = {}
        try:
            self._model = core.read_model(file.content)
            self._compile = partial(
                core.compile_model, device_name='CPU', config=settings
            )
            self._session = self._compile(self._model)
        except RuntimeError as error:
            raise OnnxFileError(
                f'{file.path} is refused by OpenVINO {runtime.__version__} '
                f'({_reason(error)}): export it with --target openvino'
            ) from error
        self.ports = tuple(self._read_ports())
        self.output_shapes = {
            output.any_name: _sizes(output.partial_shape)
            for output in self._session.outputs
        }
        self.output_names = tuple(self.output_shapes)

    def _read_ports(self) -> Iterator[Port]:
        for node in self._session.inputs:
            kind = node.element_type.get_type_name()
            if kind not in DTYPES:
                raise OnnxFileError(
                    f'{self.path} has the input {shown(node.any_name)} of '
                    f'type {kind}: give a file of taskptq export'
                )
            yield Port(
                name=node.any_name,
                shape=_sizes(node.partial_shape),
                dtype=DTYPES[kind],
            )

    def _run(self, feed: dict[str, Any]) -> list[Any]:
        """Return the outputs, in order, as arrays of their own."""
        session = self._session_for(feed)
        try:
            found = session(feed, share_inputs=False)
        except RuntimeError as error:
            raise OnnxFileError(
                f'{self.path} fails in OpenVINO: {_reason(error)}'
            ) from error
        return [output.copy() for output in found.to_tuple()]

    def _session_for(self, feed: dict[str, Any]) -> Any:
        """Return what is compiled for the shapes of the inputs."""
        if all(None not in port.shape for port in self.ports):
            return self._session
        shapes = tuple(array.shape for array in feed.values())
        if shapes not in self._shapes and len(self._shapes) < MOST_SHAPES:
            model = self._model.clone()
            try:
                model.reshape(
                    {name: list(array.shape) for name, array in feed.items()}
                )
                self._shapes[shapes] = self._compile(model)
            except RuntimeError:
                # Shapes inside of the graph may depend on values.
                self._shapes[shapes] = self._session
        return self._shapes.get(shapes, self._session)


RUNTIMES: dict[str, type[Session]] = {
    ONNXRUNTIME: Session,
    'openvino': OpenVinoSession,
    'simulation': Simulation,
}


def open_session(
    file: OnnxFile,
    *,
    runtime: str | None = None,
    threads: int | None = None,
) -> Session:
    """Open a file in the runtime of this name.

    Args:
        file: The checked file.
        runtime: ``onnxruntime``, ``openvino`` or ``simulation`` (each
            operator as it stands, in floats); None is the first.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        OnnxFileError: If the runtime is not installed, or refuses the file.
        SettingError: If ``runtime`` is none of these.
    """
    runtime = runtime or ONNXRUNTIME
    if runtime not in RUNTIMES:
        raise refuse('runtime', runtime, f'give one of {", ".join(RUNTIMES)}')
    return RUNTIMES[runtime](file, threads=threads)


def _reason(error: RuntimeError) -> str:
    """Return the line of an error that says what happened, not where."""
    lines = str(error).strip().splitlines()
    told = [line for line in lines if not line.startswith('Exception from')]
    return first_line(RuntimeError(told[0] if told else 'no reason given'))


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(
        None if size.is_dynamic else size.get_length() for size in shape
    )
