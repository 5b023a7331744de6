"""What a quantizer is for, from the structure of its layer alone."""

from __future__ import annotations

from torch import nn

from taskptq.modules.conv import is_depthwise

__all__ = ['OPERANDS', 'owner_of', 'point_of', 'role_of']

OPERANDS = ('query', 'key', 'value')


def owner_of(quantizer: str) -> str:
    """Return the layer that owns a quantizer.

    >>> owner_of('neck.0.input_quantizer')
    'neck.0'
    """
    return quantizer.rpartition('.')[0]


def point_of(quantizer: str) -> str:
    """Return which point of its layer a quantizer serves.

    >>> [point_of(f'a.{name}_quantizer') for name in (
    ...     'in_proj_weight', 'key_input', 'query_position', 'softmax',
    ...     'matmul_0_first')]
    ['weight', 'activation', 'query', 'softmax', 'attention']
    """
    parts = quantizer.rpartition('.')[2].removesuffix('_quantizer').split('_')
    if parts[-1] in ('weight', 'input'):
        return 'weight' if parts[-1] == 'weight' else 'activation'
    if parts[0] in OPERANDS or parts[-1] == 'softmax':
        return parts[0] if parts[0] in OPERANDS else 'softmax'
    # Operands of products that no counterpart owns.
    if parts[-1] in ('first', 'second', *OPERANDS):
        return 'attention'
    return 'activation'


def role_of(
    quantizer: str, layer: nn.Module, *, is_first: bool, is_head: bool
) -> str:
    """Return the role of a quantizer.

    Args:
        quantizer: Its qualified name.
        layer: The counterpart that owns it.
        is_first: Whether the layer is the first that multiplies.
        is_head: Whether no other layer multiplies between this one and the
            model's outputs.

    Returns:
        'weight', 'depthwise weight', 'output', 'first input', 'head input',
        'depthwise input', 'pointwise input', 'conv input' (larger kernels),
        'linear input', 'attention operand' or 'softmax'.
    """
    point = point_of(quantizer)
    if point == 'weight':
        return 'depthwise weight' if is_depthwise(layer) else 'weight'
    if point != 'activation':
        return 'softmax' if point == 'softmax' else 'attention operand'
    if quantizer.rpartition('.')[2].startswith('output'):
        return 'output'
    if is_first or is_head:
        return 'first input' if is_first else 'head input'
    kernel = getattr(layer, 'kernel_size', None)
    if not isinstance(kernel, tuple):
        return 'linear input'
    if is_depthwise(layer):
        return 'depthwise input'
    is_point = all(size == 1 for size in kernel)
    return 'pointwise input' if is_point else 'conv input'
