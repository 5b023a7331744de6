"""Export a quantized network to an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper
from torch import Tensor, nn

from taskptq.core.setting_error import refuse
from taskptq.export.onnx.biases import integer_biases, spread_biases
from taskptq.export.onnx.channel_scales import (
    fold_read_scales,
    fold_written_scales,
    multiply_scales,
)
from taskptq.export.onnx.columns import pad_columns
from taskptq.export.onnx.completion import GATE_LIMIT, Completion, complete
from taskptq.export.onnx.emission import Grid, exporting
from taskptq.export.onnx.equal_grids import merge_equal_grids
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.float_weights import guard_float_weights
from taskptq.export.onnx.graph import (
    Array,
    Graph,
    constants_to_initializers,
    drop_wrong_sizes,
)
from taskptq.export.onnx.lowering import (
    drop_unused,
    lower,
    store_half_bytes,
)
from taskptq.export.onnx.passes import (
    drop_repeated_relus,
    float_products,
    fold_shapes,
    move_weights,
)
from taskptq.export.onnx.patches import merge_patches
from taskptq.export.onnx.report import ExportReport
from taskptq.export.onnx.resizes import float_resizes
from taskptq.export.onnx.runtime import CODES_OPSET
from taskptq.export.onnx.stems import fold_strides
from taskptq.export.onnx.targets import find_target
from taskptq.export.onnx.tracing import TORCHSCRIPT, check_exporter, trace
from taskptq.export.onnx.verification import verify_file
from taskptq.export.onnx.wide_biases import coarsen_weights
from taskptq.version import __version__

MIN_OPSET = 13
MAX_OPSET = 21
# The newest that torch's exporter writes; what follows only adds types.
TRACED_OPSET = 20
HALF_BYTE_OPSET = 21
IR_VERSION = 10

Inputs = tuple[Tensor, ...]


def export_onnx(
    network: nn.Module,
    inputs: Inputs,
    path: str | Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    target: str = 'onnxruntime',
    opset: int = MAX_OPSET,
    metadata: Mapping[str, str] | None = None,
    calibration: Iterable[Inputs] = (),
    keep_float: Iterable[str] = (),
    gate_limit: float = GATE_LIMIT,
    output_grids: bool = True,
    exporter: str = TORCHSCRIPT,
    verify: bool = True,
) -> ExportReport:
    """Write a network as an ONNX file whose layers run in integers.

    A float network is written as it is. Of a quantized one, every weight
    becomes integers and every quantizer QuantizeLinear and DequantizeLinear
    with its own grid.

    Args:
        network: Maps plain tensors to a tuple of plain tensors, in eval mode
            and frozen; holds our counterparts.
        inputs: Example inputs.
        path: File to write; its folder is made.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
        dynamic_axes: Input or output -> {axis: name} of axes that vary.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``.
        opset: Version of the operators, 13 to 21.
        metadata: Texts for the file.
        calibration: Inputs on which missing grids are calibrated; without
            any, ``inputs``.
        keep_float: Tensors of the graph that get no grid.
        gate_limit: Least signal to noise ratio, in dB, with which SiLU and
            its kin run in integers; higher is more precise and slower.
        output_grids: Whether what the network returns gets grids, too.
        exporter: What traces the network: ``torchscript``, or ``dynamo``
            (torch.export).
        verify: Whether the file is run and compared; a file that fails is
            removed.

    Returns:
        What was written, and how it was verified.

    Raises:
        OnnxExportError: If a layer has no form in ONNX, or the file does not
            compute what the network computes.
        SettingError: If ``target``, ``opset`` or ``exporter`` is none of
            these.
    """
    rules = find_target(target)
    check_opset(opset)
    check_exporter(exporter, opset=opset)
    with exporting(network) as emitted:
        model = trace(
            network,
            inputs,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            opset=min(opset, TRACED_OPSET),
            exporter=exporter,
        )
    check_bits(emitted.grids.values(), opset=opset)
    drop_wrong_sizes(model, dynamic_axes or {})
    graph = Graph(model)
    constants_to_initializers(graph)
    unused = drop_unused(graph, emitted.grids)
    drop_repeated_relus(graph)
    feeds = [
        feeds_of(values, input_names) for values in (calibration or [inputs])
    ]
    completion = Completion()
    if rules.completes and emitted.grids:
        completion = complete(
            graph,
            emitted.grids,
            feeds=feeds,
            target=rules,
            keep_float=keep_float,
            gate_limit=gate_limit,
            outputs=output_grids,
        )
    coarser = {}
    if rules.integer_bias:
        coarser = coarsen_weights(graph, emitted.grids)
    lower(graph, emitted.grids, target=rules)
    fold_shapes(graph)
    move_weights(graph)
    merge_equal_grids(graph)
    if rules.merges_patches:
        merge_patches(graph)
    if rules.completes:
        fold_read_scales(graph)
        fold_written_scales(graph)
        multiply_scales(graph)
        float_products(graph)
        guard_float_weights(graph)
        fold_strides(graph)
        float_resizes(graph)
    if rules.integer_bias:
        integer_biases(graph)
        spread_biases(graph)
    padded = pad_columns(graph) if rules.completes else []
    if opset >= HALF_BYTE_OPSET:
        store_half_bytes(graph, emitted.grids)
    graph.finish()
    stamp(model, opset=opset, metadata=metadata or {})
    onnx.checker.check_model(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    checks = {}
    if verify and emitted.grids:
        try:
            checks = verify_file(
                path,
                network,
                inputs,
                feeds=feeds_of(inputs, input_names),
                grids=emitted.grids,
                target=rules,
            )
        except OnnxExportError:
            Path(path).unlink()
            raise
    return ExportReport(
        path=str(path),
        target=target,
        opset=opset,
        num_weights=sum(g.codes is not None for g in emitted.grids.values()),
        num_activations=sum(g.codes is None for g in emitted.grids.values()),
        decomposed=emitted.decomposed,
        unused=unused,
        coarser=coarser,
        added=completion.added,
        replaced=completion.replaced,
        shifted=completion.shifted,
        gates=completion.gates,
        float_gates=completion.float_gates,
        padded=padded,
        checks=checks,
    )


def feeds_of(inputs: Inputs, names: Sequence[str]) -> dict[str, Array]:
    """Return inputs as the runtime takes them."""
    return {
        name: x.detach().cpu().numpy()
        for name, x in zip(names, inputs, strict=True)
    }


def check_opset(opset: int) -> None:
    """Refuse versions of the operators that cannot be written."""
    if opset not in range(MIN_OPSET, MAX_OPSET + 1):
        raise refuse('opset', opset, f'give {MIN_OPSET} to {MAX_OPSET}')


def check_bits(grids: Iterable[Grid], *, opset: int) -> None:
    """Refuse codes of 16 bits where QuantizeLinear knows none."""
    wide = [grid.name for grid in grids if grid.num_bits > 8]
    if wide and opset < CODES_OPSET:
        raise OnnxExportError(
            f'{wide[0]} has more than 8 bits, which opset={opset} cannot '
            f'hold: give opset={CODES_OPSET}'
        )


def stamp(
    model: onnx.ModelProto, *, opset: int, metadata: Mapping[str, str]
) -> None:
    """Write versions and metadata."""
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid('', opset))
    model.ir_version = min(
        IR_VERSION, helper.find_min_ir_version_for(list(model.opset_import))
    )
    model.producer_name = 'taskptq'
    model.producer_version = __version__
    helper.set_model_props(model, {'taskptq': __version__, **metadata})
