"""A dry run of a pickle: follow its instructions without carrying them out.

Only the instructions of ``torch.load(weights_only=True)`` are known. Tensors
are checked against the storages in the file: torch takes their sizes from the
pickle, so it would read past the end of a storage or allocate any amount.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from typing import Any

from taskptq.export.errors import DamagedFileError, NotPlainFileError, shown
from taskptq.export.plain_calls import (
    ITEM_BYTES,
    TENSOR_CALLS,
    TENSOR_NAMES,
    TRAINING_CALLS,
    TRAINING_NAMES,
    Made,
    Name,
    Ordered,
    call,
    check_state,
    is_count,
    new,
)

# torch takes up to 10 us for each; a tensor takes about thirty.
MAX_OPCODES = 1_000_000
MAX_MARKS = 1000
MAX_TEXT_BYTES = 512 << 20
# Longer texts are bytes of arrays and not kept.
LONG_TEXT = 1 << 16
# Larger integer keys could all share one hash.
MAX_KEY = 1 << 63
KEY_TYPES = (str, int, float, bytes, bool, type(None))

Data = bytes | mmap.mmap
_INT, _SHORT, _FLOAT = (struct.Struct(f) for f in ('<i', '<H', '>d'))
_UINT = struct.Struct('<I')


class PlainPickle:
    """Dry run of one or several pickles.

    Args:
        training: Also allow the objects of mmengine's training checkpoints.
        storages: Storage key -> size in bytes, from the file; None accepts
            any size, to be checked later from ``claims``.

    Attributes:
        claims: Storage key -> (class name, elements) according to the pickle.
    """

    def __init__(
        self, *, training: bool, storages: dict[str, int] | None
    ) -> None:
        self.names = TRAINING_NAMES if training else TENSOR_NAMES
        self.calls = TRAINING_CALLS if training else TENSOR_CALLS
        self.storages = storages
        self.claims: dict[str, tuple[str, int]] = {}
        self.opcodes = 0
        self.text_bytes = 0

    def run(self, data: Data, *, start: int = 0) -> tuple[Any, int]:
        """Run the pickle that begins at ``start``.

        Returns:
            A stand-in for its object, and the position after the pickle.

        Raises:
            NotPlainFileError: If it needs more than plain data.
            DamagedFileError: If it is not a pickle or too long.
        """
        self.data, self.end = data, len(data)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            return self._loop(start)
        except (IndexError, KeyError, TypeError, struct.error) as error:
            raise DamagedFileError('is damaged (bad pickle)') from error
        except UnicodeDecodeError as error:
            raise DamagedFileError('is damaged (bad text)') from error

    def _loop(self, at: int) -> tuple[Any, int]:
        data, left = self.data, MAX_OPCODES - self.opcodes
        for count in range(left):
            code = data[at]
            at += 1
            if code == _STOP:
                self.opcodes += count + 1
                return self.stack.pop(), at
            handler = _HANDLERS[code]
            if handler is None:
                raise _unknown(code)
            at = handler(self, at)
        raise DamagedFileError(
            f'holds more than {MAX_OPCODES:,} pickled items, which no '
            'checkpoint does'
        )

    def _take(self, at: int, count: int) -> bytes:
        if at + count > self.end:
            raise IndexError
        return self.data[at : at + count]

    def _proto(self, at: int) -> int:
        return at + 1

    def _global(self, at: int) -> int:
        middle = self.data.find(b'\n', at, at + 500)
        end = self.data.find(b'\n', middle + 1, middle + 500)
        if middle < 0 or end < 0:
            raise IndexError
        module = str(self.data[at:middle], 'utf-8')
        name = f'{module}.{str(self.data[middle + 1 : end], "utf-8")}'
        if name not in self.names:
            raise NotPlainFileError(f'asks for {shown(name)[1:-1]}')
        self.stack.append(Name(name))
        return end + 1

    def _reduce(self, at: int) -> int:
        args = self.stack.pop()
        self.stack[-1] = call(self.stack[-1], args, calls=self.calls)
        return at

    def _newobj(self, at: int) -> int:
        args = self.stack.pop()
        self.stack[-1] = new(self.stack[-1], args)
        return at

    def _build(self, at: int) -> int:
        state = self.stack.pop()
        check_state(self.stack[-1], state)
        return at

    def _persistent(self, at: int) -> int:
        self.stack[-1] = self._storage(self.stack[-1])
        return at

    def _storage(self, claim: Any) -> Made:
        # The sixth field, of the old format, describes views of views.
        if type(claim) is not tuple or (
            len(claim) != 5 and (len(claim) != 6 or claim[5] is not None)
        ):
            raise NotPlainFileError('asks for an unusual storage')
        tag, kind, key, location, count = claim[:5]
        if tag not in ('storage', b'storage') or not (
            isinstance(kind, Name) and kind in ITEM_BYTES and is_count(count)
        ):
            raise NotPlainFileError('asks for an unusual storage')
        if type(key) not in (str, bytes) or type(location) not in (str, bytes):
            raise NotPlainFileError('asks for an unusual storage')
        size = count * ITEM_BYTES[kind]
        if self.storages is not None and self.storages.get(key) != size:
            raise DamagedFileError(
                f'holds {self.storages.get(key, 0):,} bytes of storage '
                f'{shown(key)} but claims {size:,}'
            )
        if self.claims.setdefault(key, (kind, count)) != (kind, count):
            raise DamagedFileError(f'has two storages named {shown(key)}')
        return Made('storage', count)

    def _append(self, at: int) -> int:
        item = self.stack.pop()
        self._list().append(item)
        return at

    def _appends(self, at: int) -> int:
        items = self._pop_mark()
        self._list().extend(items)
        return at

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError
        return target

    def _setitem(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])
        return at

    def _setitems(self, at: int) -> int:
        self._set(self._pop_mark())
        return at

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Ordered) or len(items) % 2:
            raise TypeError
        for i in range(0, len(items), 2):
            key = items[i]
            if type(key) not in KEY_TYPES or (
                type(key) is int and abs(key) >= MAX_KEY
            ):
                raise NotPlainFileError(
                    f'has a key of type {type(key).__name__}'
                )
            target[key] = items[i + 1]

    def _mark(self, at: int) -> int:
        if len(self.marks) >= MAX_MARKS:
            raise DamagedFileError('is nested too deeply')
        self.marks.append(self.stack)
        self.stack = []
        return at

    def _pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _tuple(self, at: int) -> int:
        items = self._pop_mark()
        self.stack.append(tuple(items))
        return at

    def _short_tuple(self, at: int) -> int:
        count = self.data[at - 1] - pickle.TUPLE1[0] + 1
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]
        return at

    def _empty(self, at: int) -> int:
        self.stack.append(_EMPTY[self.data[at - 1]]())
        return at

    def _constant(self, at: int) -> int:
        self.stack.append(_CONSTANTS[self.data[at - 1]])
        return at

    def _int(self, at: int) -> int:
        self.stack.append(_INT.unpack_from(self._take(at, 4))[0])
        return at + 4

    def _byte(self, at: int) -> int:
        self.stack.append(self.data[at])
        return at + 1

    def _short(self, at: int) -> int:
        self.stack.append(_SHORT.unpack_from(self._take(at, 2))[0])
        return at + 2

    def _float(self, at: int) -> int:
        self.stack.append(_FLOAT.unpack_from(self._take(at, 8))[0])
        return at + 8

    def _long(self, at: int) -> int:
        length = self.data[at]
        raw = self._take(at + 1, length)
        self.stack.append(int.from_bytes(raw, 'little', signed=True))
        return at + 1 + length

    def _text(self, at: int) -> int:
        length: int = _UINT.unpack_from(self._take(at, 4))[0]
        text = str(self._take(at + 4, length), 'utf-8', 'surrogatepass')
        if length > LONG_TEXT:
            self.text_bytes += sys.getsizeof(text)
            if self.text_bytes > MAX_TEXT_BYTES:
                raise DamagedFileError(
                    f'holds more than {MAX_TEXT_BYTES:,} bytes of text'
                )
            self.stack.append(Made('text', len(text)))
        else:
            self.stack.append(text)
        return at + 4 + length

    def _bytes(self, at: int) -> int:
        length = self.data[at]
        # torch decodes these too.
        self.stack.append(str(self._take(at + 1, length), 'utf-8'))
        return at + 1 + length

    def _get(self, at: int) -> int:
        self.stack.append(self.memo[self.data[at]])
        return at + 1

    def _long_get(self, at: int) -> int:
        index = _UINT.unpack_from(self._take(at, 4))[0]
        self.stack.append(self.memo[index])
        return at + 4

    def _put(self, at: int) -> int:
        self.memo[self.data[at]] = self.stack[-1]
        return at + 1

    def _long_put(self, at: int) -> int:
        index = _UINT.unpack_from(self._take(at, 4))[0]
        self.memo[index] = self.stack[-1]
        return at + 4


def _unknown(code: int) -> NotPlainFileError | DamagedFileError:
    name = _OPCODES.get(code)
    if name is None:
        return DamagedFileError('is damaged (bad pickle)')
    return NotPlainFileError(f'uses the pickle instruction {name}')


_OPCODES = {ord(op.code): op.name for op in pickletools.opcodes}
_STOP = pickle.STOP[0]
_EMPTY: dict[int, Callable[[], object]] = {
    pickle.EMPTY_DICT[0]: dict,
    pickle.EMPTY_LIST[0]: list,
    pickle.EMPTY_TUPLE[0]: tuple,
}
_CONSTANTS = {
    pickle.NONE[0]: None,
    pickle.NEWTRUE[0]: True,
    pickle.NEWFALSE[0]: False,
}
_HANDLERS: list[Callable[[PlainPickle, int], int] | None] = [None] * 256
for _codes, _handler in {
    pickle.PROTO: PlainPickle._proto,
    pickle.GLOBAL: PlainPickle._global,
    pickle.REDUCE: PlainPickle._reduce,
    pickle.NEWOBJ: PlainPickle._newobj,
    pickle.BUILD: PlainPickle._build,
    pickle.BINPERSID: PlainPickle._persistent,
    pickle.APPEND: PlainPickle._append,
    pickle.APPENDS: PlainPickle._appends,
    pickle.SETITEM: PlainPickle._setitem,
    pickle.SETITEMS: PlainPickle._setitems,
    pickle.MARK: PlainPickle._mark,
    pickle.TUPLE: PlainPickle._tuple,
    pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3: PlainPickle._short_tuple,
    bytes(_EMPTY): PlainPickle._empty,
    bytes(_CONSTANTS): PlainPickle._constant,
    pickle.BININT: PlainPickle._int,
    pickle.BININT1: PlainPickle._byte,
    pickle.BININT2: PlainPickle._short,
    pickle.BINFLOAT: PlainPickle._float,
    pickle.LONG1: PlainPickle._long,
    pickle.BINUNICODE: PlainPickle._text,
    pickle.SHORT_BINSTRING: PlainPickle._bytes,
    pickle.BINGET: PlainPickle._get,
    pickle.LONG_BINGET: PlainPickle._long_get,
    pickle.BINPUT: PlainPickle._put,
    pickle.LONG_BINPUT: PlainPickle._long_put,
}.items():
    for _code in _codes:
        _HANDLERS[_code] = _handler
