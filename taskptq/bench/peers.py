"""Rows of other tools' quantization: the same float file, the same images.

A model's own float ONNX file is quantized by the runtime's tool, on the
table's calibration images, and evaluated by the host as our own files are.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from taskptq.core.setting_error import refuse
from taskptq.engine.contexts import seeded
from taskptq.engine.network_parts import guard_rest, parts_of
from taskptq.engine.onnx_export import export_parts
from taskptq.engine.onnx_inputs import preprocessed, recorded_inputs
from taskptq.engine.onnx_metadata import OnnxMetadata, part_path
from taskptq.export.runtime import Session, read_onnx, runtime_package

if TYPE_CHECKING:
    from taskptq.bench.measurement import Measurement
    from taskptq.bench.table import Row

__all__ = ['PEERS', 'is_peer', 'measure_peer']

Inputs = Sequence[tuple[Tensor, ...]]
# The newest that the runtimes' own quantizers were made for.
OPSET = 17
BITS = 'w8a8'
ORT_METHODS = {
    'ort-minmax': 'MinMax',
    'ort-percentile': 'Percentile',
    'ort-entropy': 'Entropy',
}
NNCF_PRESETS = {'nncf-performance': 'PERFORMANCE', 'nncf-mixed': 'MIXED'}
PEERS = (*ORT_METHODS, *NNCF_PRESETS)


def is_peer(method: str) -> bool:
    """Return whether a row's method is another tool's."""
    return method in PEERS


def quantize_by_onnxruntime(
    source: Path, target: Path, *, inputs: Inputs, method: str
) -> None:
    """Quantize a file by ONNX Runtime's ``quantize_static``.

    Weights are signed and per channel, activations unsigned, in QDQ form,
    which is what its documentation recommends for x86 processors.

    Args:
        source: Float file.
        target: File to write.
        inputs: Calibration inputs of the file.
        method: Row's method, which names the calibration.
    """
    runtime_package('onnxruntime')
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    prepared = target.with_name(f'prepared.{target.name}')
    # Symbolic inference fails on many models; the plain one suffices.
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        _reader(source, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, ORT_METHODS[method]),
        # Else the values of all tensors of all images are held at once.
        extra_options={'CalibStridedMinMax': 1},
    )
    prepared.unlink()


def _reader(source: Path, inputs: Inputs) -> Any:
    """Return a CalibrationDataReader over inputs."""
    from onnxruntime.quantization import CalibrationDataReader

    names = [port.name for port in Session(read_onnx(source)).ports]

    class Reader(CalibrationDataReader):
        """Hands out the inputs one after another, and ranges of them."""

        def __init__(self) -> None:
            self.set_range(0, len(inputs))

        def __len__(self) -> int:
            return len(inputs)

        def set_range(self, start_index: int, end_index: int) -> None:
            """Hand out only some of the inputs next."""
            self._left = feeds(names, inputs[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            """Return the next inputs, None after the last."""
            return next(self._left, None)

    return Reader()


def feeds(names: Sequence[str], inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield calibration inputs as arrays by name."""
    for tensors in inputs:
        yield {
            name: tensor.numpy()
            for name, tensor in zip(names, tensors, strict=True)
        }


def quantize_by_nncf(
    source: Path, target: Path, *, inputs: Inputs, method: str
) -> None:
    """Quantize a file by NNCF's post-training quantization.

    Args:
        source: Float file.
        target: File to write.
        inputs: Calibration inputs of the file.
        method: Row's method, which names the preset.
    """
    nncf = runtime_package('nncf')
    onnx = runtime_package('onnx')
    model = onnx.load(str(source))
    names = [port.name for port in Session(read_onnx(source)).ports]
    data = list(feeds(names, inputs))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(data),
        preset=getattr(nncf.QuantizationPreset, NNCF_PRESETS[method]),
        subset_size=len(data),
    )
    onnx.save(quantized, str(target))


def quantizer_of(method: str) -> Callable[..., None]:
    """Return the function that quantizes for a row.

    Raises:
        SettingError: If the method is no other tool's.
    """
    if method in ORT_METHODS:
        return quantize_by_onnxruntime
    if method in NNCF_PRESETS:
        return quantize_by_nncf
    raise refuse('method', method, f'give one of {", ".join(PEERS)}')


def quantized_parts(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    folder: Path,
    method: str,
) -> dict[str, Path]:
    """Export a float model and let another tool quantize its files.

    Args:
        model: Float model in eval mode.
        batches: Collated calibration batches.
        folder: Where files are written.
        method: Row's method.

    Returns:
        The quantized file of each part.

    Raises:
        ValueError: If the model has no known network part.
    """
    data = [preprocessed(model, batch) for batch in batches]
    cut = parts_of(model)
    sizes = {cut.image_size(batch) for batch in data}
    size = list(sizes.pop()) if len(sizes) == 1 else None
    meta = OnnxMetadata(
        parts=[],
        export='',
        model=type(model).__name__,
        recipe='float',
        digest='',
        target='onnxruntime',
        input_size=size,
    )
    source = folder / 'float.onnx'
    export_parts(model, data[0], out=source, meta=meta, opset=OPSET)
    names = [part.name for part in cut.parts(data[0], dynamic=size is None)]
    sessions = {
        name: Session(read_onnx(part_path(source, name))) for name in names
    }
    given = recorded_inputs(model, data, sessions, limit=512)
    found = {}
    for name in names:
        target = part_path(folder / 'quantized.onnx', name)
        quantizer_of(method)(
            part_path(source, name),
            target,
            inputs=given[name],
            method=method,
        )
        found[name] = target
    return found


def measure_peer(measurement: Measurement, row: Row) -> dict[str, Any]:
    """Measure a row of another tool.

    Args:
        measurement: Measurement of the row's table.
        row: Row whose method is in ``PEERS``.

    Raises:
        SettingError: If the row asks for other bits than the tools have.
    """
    if row.bits != BITS:
        raise refuse(
            'bits', row.bits, f'{row.method} quantizes to {BITS} alone'
        )
    package = 'nncf' if row.method in NNCF_PRESETS else 'onnxruntime'
    version = getattr(runtime_package(package), '__version__', '')
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        files = quantized_parts(
            measurement.model,
            measurement.batches(measurement.images(row)),
            folder=Path(name),
            method=row.method,
        )
        seconds = time.perf_counter() - start
        host = copy.deepcopy(measurement.model)
        parts_of(host).install(
            {part: Session(read_onnx(path)) for part, path in files.items()}
        )
        guard_rest(host)
        size = sum(path.stat().st_size for path in files.values())
        with seeded(row.seed):
            metrics, eval_seconds = measurement.evaluate(host)
    return peer_row(
        row,
        scores=measurement.scores(metrics),
        seconds=seconds,
        eval_seconds=eval_seconds,
        size=size,
        commit=measurement.commit,
        command=measurement.table.command(row),
        tool=f'{package} {version}',
    )


def peer_row(
    row: Row,
    *,
    scores: Mapping[str, Any],
    seconds: float,
    eval_seconds: float,
    size: int,
    commit: str,
    command: str,
    tool: str,
) -> dict[str, Any]:
    """Return the entry of a results file."""
    return {
        'method': row.method,
        'bits': row.bits,
        'seed': row.seed,
        'recipe': None,
        'tool': tool,
        **scores,
        'calibration_seconds': round(seconds, 2),
        'reconstruction_seconds': 0.0,
        'eval_seconds': round(eval_seconds, 2),
        'file_bytes': size,
        'checkpoint': None,
        'command': command,
        'commit': commit,
        'steps': None,
        'scope': 'model',
        'decided': None,
        'turned': None,
    }
