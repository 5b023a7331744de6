"""What the operators of torch multiply, and which keep a tensor's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """One product: two operands and their multiply-accumulates.

    Args:
        first: Left operand, e.g. the input of a layer; None if it never
            exists as a tensor (inside a fused kernel).
        second: Right operand, e.g. a weight.
        macs: Multiply-accumulates.
    """

    first: Tensor | None
    second: Tensor | None
    macs: int


def _matrices(first: Tensor, second: Tensor) -> list[Pair]:
    """(..., N, K) times (..., K, M)."""
    return [Pair(first, second, first.numel() * second.shape[-1])]


def _vectors(first: Tensor, second: Tensor) -> list[Pair]:
    """(..., K) times (K,)."""
    return [Pair(first, second, first.numel())]


def _linear(x: Tensor, weight: Tensor) -> list[Pair]:
    """(..., C_in) times (C_out, C_in)."""
    return [Pair(x, weight, x.numel() * weight.shape[0])]


def _convolution(args: Sequence[Any], out: Any) -> list[Pair]:
    """Each value of one side meets the weights of its channel's filters.

    A weight is C_out x (C_in / groups) x k..., and of a transposed
    convolution C_in x (C_out / groups) x k....
    """
    x, weight, transposed = args[0], args[1], bool(args[6])
    values = x.numel() if transposed else out.numel()
    return [Pair(x, weight, values * (weight.numel() // weight.shape[0]))]


def _attention(args: Sequence[Any]) -> list[Pair]:
    """Query times key, softmax outputs times value, in one kernel."""
    q, k, v = args[:3]
    rows = q.numel() // q.shape[-1]
    return [
        Pair(q, k, q.numel() * k.shape[-2]),
        Pair(None, v, rows * k.shape[-2] * v.shape[-1]),
    ]


def _recurrent(args: Sequence[Any]) -> list[Pair]:
    """One layer of an LSTM, GRU or RNN: inputs and states, each step."""
    x, of_input, of_state = args[:3]
    steps = x.numel() // x.shape[-1]
    return [
        Pair(x, of_input, steps * of_input.numel()),
        Pair(None, of_state, steps * of_state.numel()),
    ]


Counter = Callable[[Sequence[Any], Any], list[Pair]]
_COUNTERS: dict[str, Counter] = {
    **dict.fromkeys(
        ('mm', 'bmm', '_int_mm', '_scaled_mm'),
        lambda args, _: _matrices(args[0], args[1]),
    ),
    **dict.fromkeys(
        (
            'addmm',
            'addmm_',
            'baddbmm',
            'baddbmm_',
            'addbmm',
            'addbmm_',
            '_addmm_activation',
        ),
        lambda args, _: _matrices(args[1], args[2]),
    ),
    **dict.fromkeys(
        ('mv', 'dot', 'vdot'), lambda args, _: _vectors(args[0], args[1])
    ),
    **dict.fromkeys(
        ('addmv', 'addmv_'), lambda args, _: _vectors(args[1], args[2])
    ),
    **dict.fromkeys(
        ('linear', 'mkldnn_linear'),
        lambda args, _: _linear(args[0], args[1]),
    ),
    **dict.fromkeys(('convolution', '_convolution'), _convolution),
    'mkldnn_rnn_layer': lambda args, _: _recurrent(args),
}


def products_of(name: str, args: Sequence[Any], out: Any) -> list[Pair]:
    """Return the products that one call of an operator computes.

    Args:
        name: Of the operator without its namespace, e.g. 'addmm'.
        args: Its positional arguments.
        out: What it returned.

    Returns:
        Nothing for operators that multiply no matrices. Elementwise
        products are none, even where a sum follows.
    """
    counter = _COUNTERS.get(name)
    if counter is not None:
        return counter(args, out)
    if name.startswith('_scaled_dot_product') and name.endswith(
        ('attention', '_for_cpu', '_overrideable')
    ):
        return _attention(args)
    return []


# Operators that move, select or repeat values and compute none. Zeros that
# they add are on every grid.
_KEEPING = frozenset({
    '_reshape_alias', '_reshape_copy', '_to_copy', '_unsafe_view', 'alias',
    'as_strided', 'channel_shuffle', 'clone', 'contiguous', 'detach',
    'diagonal', 'expand', 'flip', 'gather', 'im2col', 'index',
    'index_select', 'lift_fresh', 'max_pool2d_with_indices', 'narrow',
    'native_channel_shuffle', 'permute', 'pixel_shuffle',
    'pixel_unshuffle', 'reflection_pad1d', 'reflection_pad2d',
    'reflection_pad3d', 'repeat', 'replication_pad1d', 'replication_pad2d',
    'replication_pad3d', 'reshape', 'roll', 'rot90', 'select', 'slice',
    'split', 'split_with_sizes', 'squeeze', 't', 'take', 'transpose',
    'unbind', 'unfold', 'unsafe_chunk', 'unsafe_split',
    'unsafe_split_with_sizes', 'unsqueeze', 'view',
})  # fmt: skip
_JOINING = frozenset({'cat', 'stack'})


def kept_tensors(name: str, args: Sequence[Any]) -> list[Tensor]:
    """Return the tensors whose values, and no others, an operator returns.

    Args:
        name: Of the operator without its namespace.
        args: Its positional arguments.

    Returns:
        Nothing if it computes new values.
    """
    if name in _KEEPING:
        return [args[0]]
    if name in _JOINING:
        return list(args[0])
    if name == 'constant_pad_nd' and not any(args[2:3]):
        return [args[0]]
    if name == 'masked_fill' and _is_zero(args[2]):
        return [args[0]]
    return []


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and float(value) == 0
    return bool(value == 0)
