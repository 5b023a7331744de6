"""The few calls allowed in the pickle of a plain checkpoint.

torch allows more: bytearrays, sets, sparse, meta, quantized and wrapper
tensors. No checkpoint needs them here, and they can take more memory than the
file has bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from taskptq.export.errors import NotPlainFileError, shown

MAX_DIMS = 64
ITEM_BYTES = {
    'torch.DoubleStorage': 8,
    'torch.FloatStorage': 4,
    'torch.HalfStorage': 2,
    'torch.BFloat16Storage': 2,
    'torch.LongStorage': 8,
    'torch.IntStorage': 4,
    'torch.ShortStorage': 2,
    'torch.CharStorage': 1,
    'torch.ByteStorage': 1,
    'torch.BoolStorage': 1,
    'torch.ComplexFloatStorage': 8,
    'torch.ComplexDoubleStorage': 16,
}
DTYPES = {str(v) for v in vars(torch).values() if isinstance(v, torch.dtype)}
ARRAY = 'numpy.ndarray'
DTYPE = 'numpy.dtype'
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
HISTORY_FIELDS = {
    'max_length',
    '_max_length',
    '_log_history',
    '_count_history',
    'statistics_methods',
    '_statistics_methods',
}
NUMBER = re.compile(r'[<>=|]?[biufc]([1-9][0-9]?)')


class Name(str):
    """Class or function named by the pickle."""

    __slots__ = ()


class Ordered(dict[Any, Any]):
    """Stand-in for an OrderedDict or a Counter."""


class Made:
    """Stand-in for an object; ``size`` is in elements or bytes."""

    __slots__ = ('kind', 'size')

    def __init__(self, kind: str, size: int = 0) -> None:
        self.kind = kind
        self.size = size


Args = tuple[Any, ...]
Call = Callable[[Args], object]


def is_count(value: object) -> bool:
    """Return whether ``value`` is an int (not a bool) in [0, 2^63 - 1]."""
    return type(value) is int and 0 <= value < 1 << 63


def is_made(value: object, kind: str) -> bool:
    """Return whether ``value`` stands for an object of this kind."""
    return isinstance(value, Made) and value.kind == kind


def _counts(value: object) -> bool:
    return (
        type(value) is tuple
        and len(value) <= MAX_DIMS
        and all(map(is_count, value))
    )


def _tensor(args: Args) -> Made:
    storage, offset, size, stride, *_ = args
    if not (
        is_made(storage, 'storage')
        and is_count(offset)
        and _counts(size)
        and _counts(stride)
        and len(size) == len(stride)
        and (len(args) < 7 or not args[6])
    ):
        raise ValueError
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and offset + last >= storage.size:
        raise NotPlainFileError(
            f'holds a tensor of shape {shown(list(size))} over '
            f'{storage.size:,} stored elements'
        )
    return Made('tensor')


def _parameter(args: Args) -> Made:
    data, *_ = args
    if not is_made(data, 'tensor') or len(args) > 3:
        raise ValueError
    return data  # type: ignore[no-any-return]


def _ordered(args: Args) -> Ordered:
    if args:
        raise ValueError
    return Ordered()


def _counter(args: Args) -> Ordered:
    counts = args[0] if args else {}
    if type(counts) is not dict or len(args) > 1:
        raise ValueError
    return Ordered(counts)


def _size(args: Args) -> tuple[Any, ...]:
    (sizes,) = args
    if not _counts(tuple(sizes)):
        raise ValueError
    return tuple(sizes)


def _device(args: Args) -> Made:
    if not args or len(args) > 2 or type(args[0]) is not str:
        raise ValueError
    return Made('device')


def _encode(args: Args) -> Made:
    text, *encoding = args
    if encoding not in (['latin1'], ['latin-1']):
        raise ValueError
    if is_made(text, 'text'):
        return Made('bytes', text.size)
    if type(text) is not str:
        raise ValueError
    return Made('bytes', len(text))


def _dtype(args: Args) -> Made:
    kind, *flags = args
    found = NUMBER.fullmatch(kind)
    if found is None or any(type(flag) not in (bool, int) for flag in flags):
        raise ValueError
    return Made('dtype', int(found[1]))


def _array(args: Args) -> Made:
    kind, shape, code = args
    if kind != ARRAY or not isinstance(kind, Name) or shape != (0,):
        raise ValueError
    if not (code in (b'b', 'b') or is_made(code, 'bytes')):
        raise ValueError
    return Made('array')


def _scalar(args: Args) -> Made:
    dtype, raw = args
    if not is_made(dtype, 'dtype') or _length(raw) != dtype.size:
        raise ValueError
    return Made('scalar')


def _method(args: Args) -> Made:
    owner, name = args
    if not isinstance(owner, Name) or owner != HISTORY:
        raise ValueError
    if type(name) is not str or name.startswith('_'):
        raise ValueError
    return Made('method')


def _length(raw: object) -> int:
    """Return the length of a buffer in bytes, -1 for anything else."""
    if type(raw) in (bytes, str):
        return len(raw)  # type: ignore[arg-type]
    return raw.size if isinstance(raw, Made) and raw.kind == 'bytes' else -1


TENSOR_CALLS: dict[str, Call] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.Size': _size,
    'torch.device': _device,
    'collections.OrderedDict': _ordered,
}
# mmengine's training checkpoints also hold schedules and logged values.
TRAINING_CALLS: dict[str, Call] = {
    **TENSOR_CALLS,
    'collections.Counter': _counter,
    '_codecs.encode': _encode,
    DTYPE: _dtype,
    'numpy.core.multiarray._reconstruct': _array,
    'numpy._core.multiarray._reconstruct': _array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'builtins.getattr': _method,
    '__builtin__.getattr': _method,
}
TENSOR_NAMES = {*TENSOR_CALLS, *ITEM_BYTES, *DTYPES}
TRAINING_NAMES = {*TRAINING_CALLS, *ITEM_BYTES, *DTYPES, ARRAY, HISTORY}


def call(function: object, args: object, *, calls: dict[str, Call]) -> object:
    """Return a stand-in for the result of a call.

    Raises:
        NotPlainFileError: If the call is not allowed, or its arguments are
            not those of a plain checkpoint.
    """
    known = calls.get(function) if isinstance(function, Name) else None
    if known is None or type(args) is not tuple:
        raise NotPlainFileError(
            f'calls {shown(function) if known is None else function} in an '
            'unusual way'
        )
    try:
        return known(args)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, NotPlainFileError):
            raise
        raise NotPlainFileError(
            f'calls {function} with unusual arguments'
        ) from error


def new(kind: object, args: object) -> Made:
    """Return a stand-in for a new object of a class."""
    if isinstance(kind, Name) and kind == HISTORY and args == ():
        return Made('history')
    raise NotPlainFileError(f'makes an object of {shown(kind)}')


def check_state(target: object, state: Any) -> None:
    """Check the state that a pickle sets on an object.

    Raises:
        NotPlainFileError: If it is not the state of a plain checkpoint.
    """
    if isinstance(target, Ordered):
        fine = type(state) is dict and state.keys() <= {'_metadata'}
    elif is_made(target, 'history'):
        fine = type(state) is dict and state.keys() <= HISTORY_FIELDS
    elif is_made(target, 'dtype'):
        fine = _is_plain_dtype(state)
    else:
        fine = is_made(target, 'array') and _is_plain_array(state)
    if not fine:
        kind = target.kind if isinstance(target, Made) else type(target)
        raise NotPlainFileError(f'gives an object ({kind}) an unusual state')


def _is_plain_dtype(state: Any) -> bool:
    if type(state) is not tuple or len(state) < 8:
        return False
    plain = (None, None, None, -1, -1, 0)
    return state[1] in ('<', '>', '|', '=') and bool(state[2:8] == plain)


def _is_plain_array(state: Any) -> bool:
    if type(state) is not tuple or len(state) != 5:
        return False
    _, shape, dtype, _, raw = state
    if not _counts(shape) or not is_made(dtype, 'dtype'):
        return False
    return bool(math.prod(shape) * dtype.size == _length(raw))
