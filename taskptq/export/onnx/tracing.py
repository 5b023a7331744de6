"""Trace networks for ONNX, by either exporter of torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from taskptq.core.setting_error import refuse
from taskptq.export.onnx.dynamo import check_dynamo, trace_by_dynamo
from taskptq.export.onnx.emission import DOMAIN
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.symbolics import own_symbolics

__all__ = ['TORCHSCRIPT', 'check_exporter', 'trace']

TORCHSCRIPT, DYNAMO = 'torchscript', 'dynamo'
EXPORTERS = (TORCHSCRIPT, DYNAMO)
# How errors begin that only wrap another, and what follows the reason.
WRAPPING = ('Failed to', 'Error when translating')
ADVICE = ('[Caused by', 'Please feel free', 'Please open', 'See the stack')
Axes = Mapping[str, Mapping[int, str]]


def check_exporter(exporter: str, *, opset: int) -> None:
    """Refuse an exporter that does not exist or cannot do this.

    Raises:
        OnnxExportError: If it is not installed.
        SettingError: If there is none of this name, or it does not write
            this version of the operators.
    """
    if exporter not in EXPORTERS:
        raise refuse('exporter', exporter, f'give {" or ".join(EXPORTERS)}')
    if exporter == DYNAMO:
        check_dynamo(opset)


def trace(
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Axes | None,
    opset: int,
    exporter: str = TORCHSCRIPT,
) -> onnx.ModelProto:
    """Return the graph of a network, with placeholders inside exporting().

    Args:
        network: As in ``export_onnx``, like all that follow.
        inputs: Example inputs.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
        dynamic_axes: Input or output -> axis -> name of its free size.
        opset: Version of the operators.
        exporter: ``torchscript`` or ``dynamo``.

    Raises:
        OnnxExportError: If an operator has no form in ONNX.
    """
    run = trace_by_dynamo if exporter == DYNAMO else trace_by_torchscript
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Shapes become constants on purpose: sizes are fixed.
            warnings.simplefilter('ignore')
            return run(
                network,
                inputs,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=dynamic_axes or {},
                opset=opset,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        (other,) = set(EXPORTERS) - {exporter}
        raise OnnxExportError(
            f'{type(network).__name__} has an operator without a form in '
            f'ONNX ({reason_of(error)}): leave this part out of the exported '
            f"network, or try exporter='{other}'"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)


def trace_by_torchscript(
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Axes,
    opset: int,
) -> onnx.ModelProto:
    """Trace by torch.jit; arguments are those of :func:`trace`."""
    buffer = io.BytesIO()
    with own_symbolics():
        torch.onnx.export(
            network,
            tuple(inputs),
            buffer,  # type: ignore[arg-type]
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={
                name: dict(axes) for name, axes in dynamic_axes.items()
            },
            opset_version=opset,
            custom_opsets={DOMAIN: 1},
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def reason_of(error: BaseException) -> str:
    """Return what torch's exporter says, without its graph and advice."""
    # Of dynamo's chain, the first error says what happened.
    while str(error).startswith(WRAPPING) and error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    for rest in ADVICE:
        first = first.partition(rest)[0]
    return first.strip(' .')
