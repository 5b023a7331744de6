"""Float checkpoints that run code when they are unpickled."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pydoc
import subprocess
import tarfile
import timeit
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from .case import MODULE, Case, Good
from .opcodes import Call, archive, dumps, saved, string

__all__ = ['cases']

KIND = 'pickle'
# Ways to one call: the named function and its arguments.
CALLS: dict[str, Callable[[Good], Call]] = {
    'os-system': lambda g: Call(os.system, g.command),
    'popen': lambda g: Call(subprocess.Popen, ['/bin/sh', '-c', g.command]),
    'check-output': lambda g: Call(
        subprocess.check_output, ['/bin/sh', '-c', g.command]
    ),
    'eval': lambda g: Call(builtins.eval, g.code),
    'exec': lambda g: Call(builtins.exec, g.code),
    'pydoc-pipepager': lambda g: Call(pydoc.pipepager, 'text', g.command),
    'timeit': lambda g: Call(timeit.timeit, g.code, 'pass', timeit.timeit, 1),
    'import-module': lambda g: Call(importlib.import_module, MODULE),
    'load-from-bytes': lambda g: Call(
        torch.storage._load_from_bytes, saved(Call(os.system, g.command))
    ),
    'code-object': lambda g: Call(
        builtins.exec, Call(builtins.compile, g.code, 'm', 'exec')
    ),
    'history-buffer-globals': lambda g: _through_history(g),
}
PLACES = ('optimizer', 'meta', 'message_hub', 'param_schedulers', 'ema')


def _through_history(good: Good) -> Call:
    """Reach eval through attributes of a class that safe loading allows."""
    start = Call(builtins.getattr, HistoryBuffer, '__init__')
    scope = Call(builtins.getattr, start, '__globals__')
    found = Call(Call(builtins.getattr, scope, 'get'), '__builtins__')
    run = Call(Call(builtins.getattr, found, 'get'), 'eval')
    return Call(run, good.code)


def _in_state(name: str) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        payload = good.read('float')
        payload['state_dict']['extra'] = CALLS[name](good)
        torch.save(payload, path)

    return write


def _in_place(place: str) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        payload = good.read('float')
        payload[place] = {'a': [{'b': CALLS['os-system'](good)}]}
        torch.save(payload, path)

    return write


def _as_key(good: Good, path: Path) -> None:
    payload = good.read('float')
    payload['state_dict'][CALLS['os-system'](good)] = 1
    torch.save(payload, path)


def _with_protocol(protocol: int) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        call = CALLS['os-system'](good)
        if protocol:
            payload = {**good.read('float'), 'optimizer': call}
            torch.save(payload, path, pickle_protocol=protocol)
        else:
            # Protocol 0 has no references to tensors.
            archive(path, dumps({'state_dict': {}, 'a': call}, protocol=0))

    return write


def _by_hand(make: Callable[[Good], bytes]) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        archive(path, make(good), donor=good.path('float'))

    return write


def _build_trick(good: Good) -> bytes:
    """Give an object a ``__setstate__`` by BUILD; a second BUILD calls it."""
    return (
        b'\x80\x02ccollections\nOrderedDict\n)R}'
        + string('__setstate__')
        + b'cos\nsystem\nsb'
        + string(good.command)
        + b'b.'
    )


HAND: dict[str, tuple[str, Callable[[Good], bytes]]] = {
    'opcode-inst': (
        'INST calls os.system',
        lambda g: b'(' + string(g.command) + b'ios\nsystem\n.',
    ),
    'opcode-obj': (
        'OBJ calls os.system',
        lambda g: b'(cos\nsystem\n' + string(g.command) + b'o.',
    ),
    'opcode-stack-global': (
        'STACK_GLOBAL names os.system',
        lambda g: (
            b'\x80\x04\x8c\x02os\x8c\x06system\x93'
            + string(g.command)
            + b'\x85R.'
        ),
    ),
    'opcode-newobj': (
        'NEWOBJ makes an object of an imported class',
        lambda g: f'\x80\x02c{MODULE}\nMark\n)\x81.'.encode('latin-1'),
    ),
    'opcode-global': (
        'GLOBAL alone imports a module',
        lambda g: (
            b'\x80\x02}'
            + string('state_dict')
            + f'c{MODULE}\nMark\ns.'.encode()
        ),
    ),
    'opcode-build': ('BUILD plants __setstate__, then calls it', _build_trick),
    'opcode-after-stop': (
        'the call lies behind a dropped value',
        lambda g: b'\x80\x02}0cos\nsystem\n' + string(g.command) + b'\x85R0}.',
    ),
    'opcode-persid': (
        'the call is inside a reference to a tensor',
        lambda g: (
            b'\x80\x02('
            + string('storage')
            + b'cos\nsystem\n'
            + string(g.command)
            + b'\x85R'
            + string('0')
            + string('cpu')
            + b'K\x04tQ.'
        ),
    ),
}


def _legacy(good: Good, path: Path) -> None:
    payload = {**good.read('float'), 'optimizer': CALLS['os-system'](good)}
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def _raw(good: Good, path: Path) -> None:
    path.write_bytes(dumps(CALLS['os-system'](good)))


def _tar(good: Good, path: Path) -> None:
    """Write torch's first format, a tar of three pickles."""
    bad = dumps(CALLS['os-system'](good))
    with tarfile.open(path, 'w') as out:
        for name in ('storages', 'tensors', 'pickle'):
            member = tarfile.TarInfo(name)
            member.size = len(bad)
            out.addfile(member, io.BytesIO(bad))


class _Scripted(torch.nn.Module):
    """TorchScript that writes a file while it is loaded."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker: str = marker

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), self.marker)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _jit(good: Good, path: Path) -> None:
    torch.jit.save(torch.jit.script(_Scripted(str(good.marker))), str(path))


def _polyglot(good: Good, path: Path) -> None:
    """Begin with a pickle, end with a whole archive."""
    path.write_bytes(
        dumps(CALLS['os-system'](good)) + good.path('float').read_bytes()
    )


def _rebuild_type(good: Good, path: Path) -> None:
    payload = good.read('float')
    payload['meta'] = Call(
        torch._tensor._rebuild_from_type_v2,
        os.system,
        torch.Tensor,
        (good.command,),
        {},
    )
    torch.save(payload, path)


def _ordered_dict(good: Good, path: Path) -> None:
    """Replace attributes of an allowed class; harmless if loaded."""
    payload = good.read('float')
    state = OrderedDict(payload['state_dict'])
    state.copy = 'none'  # type: ignore[method-assign]
    state._metadata = {'': {'version': 10**9}}
    payload['state_dict'] = state
    torch.save(payload, path)


FORMATS = {
    'format-legacy': ('legacy format of torch.save', _legacy),
    'format-raw-pickle': ('a bare pickle, no format of torch', _raw),
    'format-tar': ('the tar format of the first versions of torch', _tar),
    'format-torchscript': ('TorchScript writes a file while loading', _jit),
    'format-polyglot': ('a pickle in front of a whole archive', _polyglot),
    'rebuild-from-type': (
        'an allowed rebuild function calls os.system',
        _rebuild_type,
    ),
}


def _case(name: str, effect: str, write: Any, expect: str = 'refused') -> Case:
    return Case(
        name=f'pickle-{name}',
        kind=KIND,
        effect=effect,
        write=write,
        source='float',
        expect=expect,
    )


def cases() -> list[Case]:
    """List them."""
    return [
        *(
            _case(n, f'calls {n} while unpickling', _in_state(n))
            for n in CALLS
        ),
        *(
            _case(f'in-{p}', f'calls os.system from {p}', _in_place(p))
            for p in PLACES
        ),
        _case('as-key', 'calls os.system from a key', _as_key),
        *(
            _case(
                f'protocol-{p}',
                f'calls os.system, protocol {p}',
                _with_protocol(p),
            )
            for p in range(6)
        ),
        *(
            _case(n, effect, _by_hand(make))
            for n, (effect, make) in HAND.items()
        ),
        *(_case(n, effect, write) for n, (effect, write) in FORMATS.items()),
        _case(
            'ordered-dict-attributes',
            'replaces methods of the state dict',
            _ordered_dict,
            'either',
        ),
    ]
