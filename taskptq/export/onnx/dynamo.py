"""Trace networks by torch.export, the exporter ``dynamo``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from taskptq.core.setting_error import refuse
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.optional import runtime_package

__all__ = ['MIN_OPSET', 'check_dynamo', 'trace_by_dynamo']

# The oldest that it writes.
MIN_OPSET = 18
# Of a node: the modules around it, outermost first, and the operator.
SCOPES = 'pkg.torch.onnx.name_scopes'


def check_dynamo(opset: int) -> None:
    """Refuse what this exporter cannot do, before the work.

    Raises:
        OnnxExportError: If a package is missing, or too old.
        SettingError: If it does not write this version of the operators.
    """
    if not hasattr(torch.onnx, 'ops'):
        raise OnnxExportError(
            "exporter='dynamo' needs torch 2.8, and this is "
            f"{torch.__version__}: use exporter='torchscript'"
        )
    runtime_package('onnxscript')
    if opset < MIN_OPSET:
        raise refuse(
            'opset',
            opset,
            f"exporter='dynamo' writes {MIN_OPSET} and newer, "
            "exporter='torchscript' older ones",
        )


def trace_by_dynamo(
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> onnx.ModelProto:
    """Return the graph of a network, with placeholders inside exporting().

    Args:
        network: As in ``export_onnx``, like all that follow.
        inputs: Example inputs.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
        dynamic_axes: Input or output -> axis -> name of its free size.
        opset: Version of the operators.

    Raises:
        OnnxExporterError: Of torch, if it cannot write the network.
    """
    # Tensors have no values while torch.export traces: codes of weights are
    # computed before.
    network(*inputs)
    program: Any = torch.onnx.export(
        network,
        tuple(inputs),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(input_names),
        output_names=list(output_names),
        dynamic_shapes=free_shapes(network, input_names, dynamic_axes),
    )
    model: onnx.ModelProto = program.model_proto
    name_sizes(model, dynamic_axes)
    name_nodes(model)
    forget_sources(model)
    return model


def free_shapes(
    network: nn.Module,
    names: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> tuple[Any, ...]:
    """Return which sizes of the inputs are free, as torch.export takes it."""
    sizes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis in axes.get(name, {})} or None
        for name in names
    )
    known = inspect.signature(network.forward).parameters.values()
    gathered = any(p.kind is p.VAR_POSITIONAL for p in known)
    # All of *tensors are one argument.
    return (sizes,) if gathered else sizes


def name_sizes(
    model: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]
) -> None:
    """Give free sizes the names that were asked for.

    Args:
        model: As torch wrote it; edited in place.
        axes: Input or output -> axis -> name of its free size.
    """
    graph = model.graph
    found: dict[str, str] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, label in axes.get(value.name, {}).items():
            found.setdefault(dims[axis].dim_param, label)
    for value in (*graph.input, *graph.value_info, *graph.output):
        own = axes.get(value.name, {})
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                known = found.get(dim.dim_param, dim.dim_param)
                dim.dim_param = own.get(axis, known)


def name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes by their modules, which reports of layers show."""
    used: set[str] = set()
    for node in model.graph.node:
        facts = {entry.key: entry.value for entry in node.metadata_props}
        # A list of Python's, as text.
        scopes = facts.get(SCOPES, '').strip('[]').replace("'", '').split(', ')
        path = scopes[-2].replace('.', '/') if len(scopes) > 1 else ''
        stem = f'/{path}/{node.op_type}' if path else f'/{node.op_type}'
        name, count = stem, 0
        while name in used:
            count += 1
            name = f'{stem}_{count}'
        used.add(name)
        node.name = name


def forget_sources(model: onnx.ModelProto) -> None:
    """Drop what torch notes of source files, and of their folders."""
    graph = model.graph
    for thing in (model, graph, *graph.node):
        thing.doc_string = ''
        del thing.metadata_props[:]
    for value in (*graph.input, *graph.value_info, *graph.output):
        value.doc_string = ''
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ''
        del tensor.metadata_props[:]
