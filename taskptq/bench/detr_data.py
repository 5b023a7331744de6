"""Parts of mmdet's DETRs, by module names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from taskptq.modules.attention import QuantAttention
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.patterns import matches

# Group -> patterns of its modules, for DETR, Conditional DETR, DAB-DETR,
# Deformable DETR and DINO, each of which lacks some.
GROUPS: dict[str, tuple[str, ...]] = {
    'backbone': ('backbone.*',),
    'neck': ('neck.*',),
    'encoder attention': (
        r're:encoder\.layers\.\d+\.self_attn(\..+)?',
        # DAB-DETR scales the positions that its attention reads.
        'encoder.query_scale.*',
    ),
    'encoder FFN': (r're:encoder\.layers\.\d+\.ffn\..+',),
    'decoder self-attention': (r're:decoder\.layers\.\d+\.self_attn(\..+)?',),
    'decoder cross-attention': (
        r're:decoder\.layers\.\d+\.cross_attn(\..+)?',
    ),
    'decoder FFN': (r're:decoder\.layers\.\d+\.ffn\..+',),
    'head and reference points': (
        'bbox_head.*',
        # Layers that make queries' positions or reference points.
        r're:decoder\.(query_scale|ref_point_head|ref_anchor_head)\..+',
        r're:(reference_points_fc|memory_trans_fc|pos_trans_fc)',
    ),
}
# Steps of progressive quantization, as in Q-DETR's Fig. 4: each adds groups.
STEPS: dict[str, tuple[str, ...]] = {
    'backbone and neck': ('backbone', 'neck'),
    '+ encoder': ('encoder attention', 'encoder FFN'),
    '+ decoder attention': (
        'decoder self-attention',
        'decoder cross-attention',
    ),
    '+ decoder MLPs and head': ('decoder FFN', 'head and reference points'),
}
ATTENTIONS = {'cross_attn': 'cross-attention', 'self_attn': 'self-attention'}


def quantized_names(model: nn.Module, qconfig: QConfig) -> list[str]:
    """Return the modules of a float model that a recipe quantizes.

    Args:
        model: Float model; not changed.
        qconfig: The recipe.
    """
    report = prepare(copy.deepcopy(model), qconfig)
    return [row.name for row in report.rows if row.status == 'quantized']


def partition(names: Sequence[str]) -> dict[str, list[str]]:
    """Sort modules into the groups and omit empty groups.

    Args:
        names: Qualified names.

    Raises:
        ValueError: If a module is in no group, or in two.
    """
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        groups = [
            group
            for group, patterns in GROUPS.items()
            if any(matches(name, pattern) for pattern in patterns)
        ]
        if len(groups) != 1:
            where = ' and '.join(groups) or 'no group'
            raise ValueError(
                f'{name} belongs to {where}: this report supports DETR, '
                'Conditional DETR, DAB-DETR, Deformable DETR and DINO'
            )
        found[groups[0]].append(name)
    return {group: members for group, members in found.items() if members}


def patterns_of(
    groups: Sequence[str], parts: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the patterns of groups that match a module of the model.

    Args:
        groups: Names of groups that the model has.
        parts: What :func:`partition` returned.

    Raises:
        ValueError: If the model lacks one of the groups.
    """
    absent = [group for group in groups if group not in parts]
    if absent:
        raise ValueError(f'the model has no {absent[0]}')
    return [
        pattern
        for group in groups
        for pattern in GROUPS[group]
        if any(matches(name, pattern) for name in parts[group])
    ]


def kept_without(
    groups: Sequence[str], parts: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return ``keep_float`` patterns that leave only some groups quantized.

    Args:
        groups: The groups to quantize.
        parts: What :func:`partition` returned.
    """
    return patterns_of([g for g in parts if g not in groups], parts)


def progressive_steps(
    parts: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, list[str]]]:
    """Yield each step's title and all groups quantized by then.

    Args:
        parts: What :func:`partition` returned.
    """
    done: list[str] = []
    for title, groups in STEPS.items():
        added = [group for group in groups if group in parts]
        if added:
            done = [*done, *added]
            yield title, done


def query_points(model: Any) -> dict[str, str]:
    """Find the query quantizer of each layer of a decoder.

    Args:
        model: Swapped detector with ``decoder.layers``.

    Returns:
        ``'cross-attention {layer}'``, or ``'self-attention {layer}'`` where
        cross-attention has no keys (deformable attention) -> qualified name
        of the quantizer that reads the queries.

    Raises:
        ValueError: If the model has no such decoder, or its queries are not
            quantized.
    """
    layers = getattr(getattr(model, 'decoder', None), 'layers', None)
    if layers is None:
        raise ValueError(f'{type(model).__name__} has no decoder with layers')
    found = {}
    for number, layer in enumerate(layers):
        for attribute, title in ATTENTIONS.items():
            name = _query_quantizer(layer, attribute)
            if name is not None:
                found[f'{title} {number}'] = f'decoder.layers.{number}.{name}'
                break
    if not found:
        raise ValueError(
            f'{type(model).__name__}: no query of the decoder is quantized; '
            'choose a row whose qconfig quantizes attention'
        )
    return found


def _query_quantizer(layer: nn.Module, attribute: str) -> str | None:
    """Return the name, within a layer, of an attention's query quantizer."""
    attention = getattr(layer, attribute, None)
    if attention is None:
        return None
    for name, module in attention.named_modules():
        if isinstance(module, QuantAttention):
            if module.query_quantizer is None:
                return None
            return '.'.join(
                part for part in (attribute, name, 'query_quantizer') if part
            )
    return None
