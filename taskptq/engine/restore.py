"""Rebuild a quantized model from its file, after checking everything."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from torch import nn

from taskptq.engine.builder import build_qconfig
from taskptq.engine.pipeline import prepare_in_place, refuse_quantized
from taskptq.export.checkpoint import (
    QuantizedCheckpointError,
    check_fit,
    unpack_model,
    verify,
)
from taskptq.methods.rewriting.replay import replay
from taskptq.prepare import Decisions, QConfig

__all__ = ['restore_model']


def restore_model(
    payload: Mapping[str, Any], model: nn.Module
) -> dict[str, Any]:
    """Rebuild a quantized model from its file's contents, in place.

    The whole file is checked first on an outline of the model, so a refused
    file leaves the model unchanged.

    Args:
        payload: Contents of a quantized file.
        model: Float model of the same config, with any weights.

    Returns:
        The file's recipe.

    Raises:
        QuantizedCheckpointError: If the file cannot be used with this model.
        RuntimeError: If the model is already quantized.
    """
    refuse_quantized(model)
    payload = verify(payload)
    recipe = payload['recipe']
    model.eval()
    try:
        qconfig = read_qconfig(recipe)
        decisions = read_decisions(payload, model)
        sketch = outline(model)
        changes = (payload.get('structure') or {}).get('rewrites')
        replay(sketch, changes)
        prepare_in_place(sketch, qconfig, decisions=decisions)
    except ValueError as error:
        raise QuantizedCheckpointError(
            f'the quantized file does not fit this {type(model).__name__}: '
            f'{error}'
        ) from error
    check_fit(payload, sketch)
    replay(model, changes)
    prepare_in_place(model, qconfig, decisions=decisions)
    unpack_model(payload, model)
    return dict(recipe)


def read_qconfig(recipe: Mapping[str, Any]) -> QConfig:
    """Build the qconfig of a file's recipe, which is not trusted.

    Raises:
        ValueError: If it is missing, or a setting or a name is invalid.
    """
    if not isinstance(recipe.get('qconfig'), Mapping):
        raise ValueError('its recipe has no qconfig')
    return build_qconfig(recipe['qconfig'], from_file=True)


def read_decisions(payload: Mapping[str, Any], model: nn.Module) -> Decisions:
    """Return the decisions that a file records or implies.

    Raises:
        ValueError: If they are not in the format of ``Decisions.to_dict``.
    """
    structure = payload.get('structure')
    if structure is not None and 'decisions' in structure:
        return Decisions.from_dict(structure['decisions'])
    # Files of schema 1 record no decisions.
    return Decisions.inferred(model, {*payload['weights'], *payload['float']})


def outline(model: nn.Module) -> nn.Module:
    """Copy a model without memory for its parameters and buffers."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = tensor.detach().to('meta')
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(model, memo)
