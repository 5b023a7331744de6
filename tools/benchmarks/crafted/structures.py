"""Quantized files with a valid digest and invalid contents."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .case import Case, Good, Write, edited, first, redigest
from .opcodes import archive, pickle_of, saved, string

__all__ = ['cases', 'planted']

KIND = 'structure'
PLACEHOLDER = '-here-goes-something-else-'
Payload = dict[str, Any]


def planted(section: str, pickled: bytes) -> Write:
    """Return a function that writes a hand-made pickle into a section.

    Args:
        section: Plain section that gets the entry ``extra``.
        pickled: Opcodes that leave one object on the stack.
    """

    def write(good: Good, path: Path) -> None:
        payload = good.read('quantized')
        payload[section] = {**payload[section], 'extra': PLACEHOLDER}
        redigest(payload)
        path.write_bytes(saved(payload))
        whole = pickle_of(path).replace(string(PLACEHOLDER), pickled, 1)
        donor = path.with_suffix('.donor')
        path.rename(donor)
        archive(path, whole, donor=donor)
        donor.unlink()

    return write


def _set(*keys: Any, to: Any) -> Callable[[Payload], None]:
    """Return a change that sets one nested entry."""

    def change(payload: Payload) -> None:
        node: Any = payload
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to() if callable(to) else to

    return change


def _weight(field: str, to: Any) -> Callable[[Payload], None]:
    """Return a change of a field of the first packed weight."""

    def change(payload: Payload) -> None:
        entry = payload['weights'][first(payload['weights'])]
        entry[field] = to(entry) if callable(to) else to

    return change


def _tensor(
    section: str, to: Any, *, ending: str = ''
) -> Callable[[Payload], None]:
    """Return a change of the first tensor of a section."""

    def change(payload: Payload) -> None:
        name = first(payload[section], ending=ending)
        old = payload[section][name]
        payload[section][name] = to(old) if callable(to) else to

    return change


def _drop(*keys: str) -> Callable[[Payload], None]:
    def change(payload: Payload) -> None:
        node: Any = payload
        for key in keys[:-1]:
            node = node[key or first(node)]
        del node[keys[-1] or first(node)]

    return change


def _rename(
    section: str, make: Callable[[str], Any]
) -> Callable[[Payload], None]:
    def change(payload: Payload) -> None:
        entries = payload[section]
        name = first(entries)
        entries[make(name)] = entries.pop(name)

    return change


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _shared(levels: int = 60) -> list[Any]:
    """Return a nested list that has 2**60 items when written out."""
    found: list[Any] = [0]
    for _ in range(levels):
        found = [found, found]
    return found


def _many_keys(section: str, count: int) -> Callable[[Payload], None]:
    def change(payload: Payload) -> None:
        one = torch.zeros(1)
        payload[section].update({f'k{i}': one for i in range(count)})

    return change


def _sections() -> list[tuple[str, str, Callable[[Payload], None]]]:
    wrong = {
        'none': None,
        'list': [],
        'text': 'x',
        'number': 1,
        'tensor': lambda: torch.zeros(2),
    }
    found = [
        (f'{section}-{label}', f'{section} is {label}', _set(section, to=to))
        for section, label in (
            ('weights', 'list'),
            ('weights', 'none'),
            ('quantizers', 'none'),
            ('quantizers', 'tensor'),
            ('float', 'list'),
            ('float', 'none'),
            ('recipe', 'none'),
            ('recipe', 'text'),
            ('recipe', 'list'),
            ('meta', 'none'),
            ('meta', 'list'),
            ('meta', 'number'),
            ('structure', 'none'),
            ('structure', 'list'),
            ('digest', 'none'),
            ('digest', 'number'),
            ('taskptq', 'list'),
            ('state_dict', 'none'),
        )
        for to in (wrong[label],)
    ]
    found += [
        (f'lacks-{name}', f'has no {name}', _drop(name))
        for name in (
            'weights',
            'quantizers',
            'float',
            'recipe',
            'meta',
            'digest',
            'state_dict',
        )
    ]
    return [
        *found,
        (
            'digest-wrong',
            'has the digest of another file',
            lambda p: _set('digest', to='0' * 64)(p),
        ),
        (
            'extra-section',
            'holds a section that no schema has',
            _set('extra', to={'a': [1]}),
        ),
        (
            'state-dict-weights',
            'holds weights in place of the note',
            _set('state_dict', to=lambda: {'x': torch.zeros(1)}),
        ),
    ]


SCHEMAS = {
    'text': '1',
    'float': 2.0,
    'bool': True,
    'future': 99,
    'negative': -1,
    'none': None,
    'list': [1],
    'huge': 10**30,
}


def _tensors() -> list[tuple[str, str, Callable[[Payload], None]]]:
    wide = 2**30

    def stretched(old: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1).expand(wide)

    return [
        (
            'packed-list',
            'a packed weight is a list',
            _weight('packed', [1, 2, 3]),
        ),
        ('packed-none', 'a packed weight is None', _weight('packed', None)),
        (
            'packed-float',
            'a packed weight is float32',
            _weight('packed', lambda e: e['packed'].float()),
        ),
        (
            'packed-2d',
            'a packed weight has two axes',
            _weight('packed', lambda e: e['packed'][None]),
        ),
        (
            'packed-sparse',
            'a packed weight is sparse',
            _weight('packed', lambda e: e['packed'].to_sparse()),
        ),
        (
            'packed-meta',
            'a packed weight has no data',
            _weight('packed', lambda e: e['packed'].to('meta')),
        ),
        (
            'packed-stretched',
            'a packed weight of 1 GiB by stride 0',
            _weight('packed', lambda e: e['packed'][:1].expand(wide)),
        ),
        (
            'float-stretched',
            'a float tensor of 4 GiB by stride 0',
            _tensor('float', stretched),
        ),
        (
            'float-stretched-int64',
            '8 GiB by stride 0',
            _tensor(
                'float',
                lambda t: torch.zeros(1, dtype=torch.int64).expand(wide),
            ),
        ),
        (
            'float-extra-stretched',
            'an unknown tensor of 4 GiB by stride 0',
            lambda p: p['float'].update(extra=torch.zeros(1).expand(wide)),
        ),
        (
            'float-shared-windows',
            'tensors overlap in one storage',
            lambda p: p['float'].update(
                {f'extra{i}': _BASE[i : i + 2**20] for i in range(2000)}
            ),
        ),
        (
            'float-sparse',
            'a float tensor is sparse',
            _tensor('float', lambda t: t.to_sparse()),
        ),
        (
            'float-csr',
            'a float tensor is sparse by rows',
            lambda p: p['float'].update(extra=torch.eye(3).to_sparse_csr()),
        ),
        (
            'float-meta',
            'a float tensor has no data',
            _tensor('float', lambda t: t.to('meta')),
        ),
        (
            'float-quantized',
            'a float tensor is of a quantized dtype',
            _tensor(
                'float',
                lambda t: torch.quantize_per_tensor(
                    t.float(), 0.1, 0, torch.qint8
                ),
            ),
        ),
        (
            'float-nested',
            'a float tensor is nested',
            _tensor('float', lambda t: torch.nested.nested_tensor([t, t])),
        ),
        (
            'float-complex',
            'a float tensor is complex',
            _tensor('float', lambda t: t.to(torch.complex64)),
        ),
        ('float-entry-none', 'a float entry is None', _tensor('float', None)),
        ('float-dict', 'a float entry is a dict', _tensor('float', {'a': 1})),
        ('float-text', 'a float entry is text', _tensor('float', 'x')),
        (
            'float-nan',
            'a float tensor is NaN',
            _tensor('float', lambda t: torch.full_like(t, math.nan)),
        ),
        (
            'float-shape',
            'a float tensor has another shape',
            _tensor('float', lambda t: torch.cat([t.flatten(), t.flatten()])),
        ),
        (
            'quantizer-number',
            'a scale is a number',
            _tensor('quantizers', 0.5, ending='scale'),
        ),
        (
            'quantizer-none',
            'a scale is None',
            _tensor('quantizers', None, ending='scale'),
        ),
        (
            'quantizer-sparse',
            'a scale is sparse',
            _tensor('quantizers', lambda t: t.to_sparse(), ending='scale'),
        ),
        (
            'quantizer-stretched',
            'a scale of 4 GiB by stride 0',
            _tensor('quantizers', stretched, ending='scale'),
        ),
    ]


_BASE = torch.zeros(2**20 + 2000)


def _entries() -> list[tuple[str, str, Callable[[Payload], None]]]:
    def twice(name: str) -> str:
        return f'{name}\n\x1b[2Jtaskptq: all is well'

    return [
        (
            'entry-none',
            'a weight entry is None',
            lambda p: p['weights'].update({first(p['weights']): None}),
        ),
        (
            'entry-list',
            'a weight entry is a list',
            lambda p: p['weights'].update({first(p['weights']): []}),
        ),
        (
            'entry-field',
            'a weight entry lacks its shape',
            _drop('weights', '', 'shape'),
        ),
        (
            'entry-more',
            'a weight entry has another field',
            _weight('extra', 1),
        ),
        ('weight-missing', 'a weight is missing', _drop('weights', '')),
        ('float-missing', 'a float tensor is missing', _drop('float', '')),
        (
            'quantizer-missing',
            'a quantizer is missing',
            _drop('quantizers', ''),
        ),
        (
            'weight-unknown',
            'a weight of no layer',
            _rename('weights', lambda n: n + 'x'),
        ),
        (
            'weight-twice',
            'a weight is packed and float',
            lambda p: p['float'].update({first(p['weights']): torch.zeros(1)}),
        ),
        ('keys-int', 'an int among the names', _rename('float', lambda n: 7)),
        (
            'keys-int-weights',
            'an int among the weights',
            _rename('weights', lambda n: 7),
        ),
        (
            'keys-tuple',
            'a tuple among the names',
            _rename('quantizers', lambda n: (n, 1)),
        ),
        (
            'keys-control',
            'a name that clears the terminal',
            _rename('weights', twice),
        ),
        (
            'keys-long',
            'a name of 8 MiB',
            _rename('weights', lambda n: n * 2**19),
        ),
    ]


def _plain() -> list[Case]:
    """List attacks by plain data: cycles, sharing, depth, odd types."""
    deep = b']' * 100_000 + b'a' * 99_999
    dicts = (b'}' + string('a')) * 3000 + b'N' + b's' * 3000
    return [
        *(
            _case(
                f'{s}-cycle',
                f'a list in {s} holds itself',
                edited(_set(s, 'extra', to=_cycle)),
            )
            for s in ('recipe', 'meta')
        ),
        *(
            _case(
                f'{s}-shared',
                f'a list in {s} unfolds to 2**60 items',
                edited(_set(s, 'extra', to=_shared), digest=False),
            )
            for s in ('recipe', 'meta')
        ),
        *(
            _case(f'{s}-deep', f'lists in {s}, 100,000 deep', planted(s, deep))
            for s in ('recipe', 'meta')
        ),
        _case(
            'meta-deep-dicts',
            'dicts in meta, 3,000 deep',
            planted('meta', dicts),
        ),
        *(
            _case(
                f'meta-{n}',
                f'meta holds a {n}',
                edited(_set('meta', 'extra', to=value)),
            )
            for n, value in (
                ('set', {1}),
                ('bytes', b'x'),
                ('complex', 1j),
                ('tensor', lambda: torch.zeros(2)),
            )
        ),
        _case(
            'meta-nan',
            'meta holds NaN',
            edited(_set('meta', 'extra', to=math.nan)),
            expect='either',
        ),
        _case(
            'meta-dataset',
            'dataset_meta is a number',
            edited(_set('meta', 'dataset_meta', to=7)),
            expect='either',
        ),
        _case(
            'meta-changed',
            'meta differs from what the digest covers',
            edited(_set('meta', 'extra', to='x'), digest=False),
        ),
        *(
            _case(
                f'million-{s}',
                f'10**6 names in {s}',
                edited(_many_keys(s, 10**6), digest=False),
            )
            for s in ('float', 'quantizers')
        ),
        _case(
            'hundred-thousand',
            '100,000 names, valid digest',
            edited(_many_keys('float', 10**5)),
        ),
    ]


def _older() -> list[Case]:
    """List files of schema 1, which get the same checks."""

    def schema_1(change: Callable[[Payload], None]) -> Write:
        def both(payload: Payload) -> None:
            payload['taskptq']['schema'] = 1
            payload.pop('structure', None)
            change(payload)

        return edited(both)

    return [
        _case(
            'schema-1-good',
            'a good file of the former schema',
            schema_1(lambda p: None),
            expect='accepted',
        ),
        _case(
            'schema-1-meta',
            'schema 1 with meta None',
            schema_1(_set('meta', to=None)),
        ),
        _case(
            'schema-1-nan',
            'schema 1 with a NaN scale',
            schema_1(
                _tensor('quantizers', lambda t: t * math.nan, ending='scale')
            ),
        ),
        _case(
            'schema-1-type',
            'schema 1 whose observer runs a command',
            _schema_1_command,
        ),
    ]


def _schema_1_command(good: Good, path: Path) -> None:
    payload = good.read('quantized')
    payload['taskptq']['schema'] = 1
    payload.pop('structure', None)
    payload['recipe']['qconfig']['weight']['observer'] = {
        'type': 'pydoc.pipepager',
        'cmd': good.command,
    }
    redigest(payload)
    torch.save(payload, path)


def _case(
    name: str, effect: str, write: Any, *, expect: str = 'refused'
) -> Case:
    return Case(
        name=f'structure-{name}',
        kind=KIND,
        effect=effect,
        write=write,
        expect=expect,
    )


def cases() -> list[Case]:
    """List them."""
    listed = [*_sections(), *_tensors(), *_entries()]
    harmless = {
        'lacks-state_dict',
        'state_dict-none',
        'extra-section',
        'state-dict-weights',
    }
    return [
        *(
            _case(
                name,
                effect,
                edited(
                    change,
                    digest='digest' not in name and 'stretch' not in name,
                ),
                expect='either' if name in harmless else 'refused',
            )
            for name, effect, change in listed
        ),
        *(
            _case(
                f'schema-{n}',
                f'the schema is {value!r}',
                edited(_set('taskptq', 'schema', to=value)),
            )
            for n, value in SCHEMAS.items()
        ),
        *_plain(),
        *_older(),
    ]
