"""Checkpoints of trainings and of a reconstruction, to resume from."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .case import (
    MODULE,
    QAT_KEY,
    Case,
    Good,
    Write,
    edited_float,
    edited_training,
    first,
    replaced,
)
from .opcodes import Call
from .recipes import BACKTRACKING, pipepager

__all__ = ['cases']

KIND = 'training'
Entry = dict[str, Any]


def _recipe(keys: str, value: Any) -> Write:
    """Set a dotted entry of the recipe in QATHook's checkpoint."""

    def write(good: Good, path: Path) -> None:
        found = value(good) if callable(value) else value

        def change(entry: Entry) -> None:
            entry['recipe'] = replaced(entry['recipe'], keys, found)

        edited_training(change)(good, path)

    return write


def _set(key: str, value: Any) -> Write:
    return edited_training(lambda entry: entry.update({key: value}))


def _weights(ending: str, change: Callable[[torch.Tensor], Any]) -> Write:
    def apply(entry: Entry) -> None:
        weights = dict(entry['weights'])
        name = first(weights, ending=ending)
        weights[name] = change(weights[name])
        entry['weights'] = weights

    return edited_training(apply)


def _drop(key: str) -> Write:
    return edited_training(lambda entry: entry.pop(key))


def _qat() -> list[tuple[str, str, Write, str]]:
    refused = [
        (
            'observer',
            'an observer runs a command',
            _recipe('qconfig.weight.observer', pipepager),
        ),
        (
            'quantizer',
            'a quantizer runs a command',
            _recipe('qconfig.activation', pipepager),
        ),
        (
            'override',
            'an override runs a command',
            _recipe(
                'qconfig.overrides',
                lambda g: [
                    {'pattern': '*', 'weight': {'observer': pipepager(g)}}
                ],
            ),
        ),
        (
            'import',
            'importing an observer runs code',
            _recipe('qconfig.weight.observer', {'type': f'{MODULE}.Mark'}),
        ),
        (
            'backtracking',
            'keep_float backtracks forever',
            _recipe('qconfig.keep_float', [BACKTRACKING]),
        ),
        ('stage', 'stage 7', _recipe('training.stage', 7)),
        ('stage-list', 'stage is a list', _recipe('training.stage', [1])),
        (
            'training-none',
            'recipe without training',
            _recipe('training', None),
        ),
        ('qconfig-none', 'recipe without qconfig', _recipe('qconfig', None)),
        ('recipe-none', 'no recipe', _set('recipe', None)),
        ('recipe-list', 'the recipe is a list', _set('recipe', [])),
        ('weights-none', 'no weights', _set('weights', None)),
        ('weights-list', 'weights are a list', _set('weights', [1])),
        ('weights-empty', 'weights are empty', _set('weights', {})),
        (
            'weights-text',
            'a weight is text',
            _weights('.weight', lambda t: 'x'),
        ),
        (
            'weights-shape',
            'a weight has another shape',
            _weights('.weight', lambda t: t[:1]),
        ),
        (
            'weights-sparse',
            'a weight is sparse',
            _weights('.weight', lambda t: t.detach().to_sparse()),
        ),
        (
            'weights-stretched',
            'a weight of 4 GiB by stride 0',
            _weights('.weight', lambda t: torch.zeros(1).expand(2**30)),
        ),
        (
            'scale-nan',
            'a scale is NaN',
            _weights('.scale', lambda t: t.detach() * math.nan),
        ),
        (
            'scale-negative',
            'a scale is negative',
            _weights('.scale', lambda t: -t.detach()),
        ),
        (
            'scale-zero',
            'a scale is 0',
            _weights('.scale', lambda t: t.detach() * 0),
        ),
        (
            'scale-many',
            '10**6 scales',
            _weights('.scale', lambda t: torch.ones(10**6)),
        ),
        (
            'grid-reversed',
            'a grid is reversed',
            _weights('.grid', lambda t: t.flip(0)),
        ),
        (
            'grid-wide',
            'a 32-bit grid',
            _weights(
                '.grid',
                lambda t: torch.tensor(
                    [-(2**31), 2**31 - 1], dtype=torch.int32
                ),
            ),
        ),
        (
            'grid-three',
            'a grid with three ends',
            _weights(
                '.grid', lambda t: torch.tensor([0, 1, 2], dtype=torch.int32)
            ),
        ),
        ('schema', 'schema 99', _set('schema', 99)),
        ('schema-bool', 'schema True', _set('schema', True)),
        ('lacks-weights', 'no entry weights', _drop('weights')),
        ('lacks-recipe', 'no entry recipe', _drop('recipe')),
    ]
    either = [
        ('report-none', 'no report', _set('report', None)),
        ('report-list', 'the report is a list', _set('report', [1])),
        (
            'teacher',
            'a teacher outside the folder',
            _set('teacher', '../../../etc/passwd'),
        ),
    ]
    return [
        *((*row, 'refused') for row in refused),
        *((*row, 'either') for row in either),
    ]


def _entry_of(value: Any) -> Write:
    return edited_float(
        lambda p: p.update({QAT_KEY: value}), source='training'
    )


def _resume() -> list[Case]:
    def code(payload: dict[str, Any], good: Good) -> None:
        payload['meta'] = {**payload['meta'], 'config': good.code + '\n'}

    def write_code(good: Good, path: Path) -> None:
        payload = good.read('epoch')
        code(payload, good)
        torch.save(payload, path)

    def write_call(good: Good, path: Path) -> None:
        payload = good.read('epoch')
        payload['optimizer'] = Call(os.system, good.command)
        torch.save(payload, path)

    trains = ('train', 'mmdet-train', 'mmdet-train-latest')
    tests = ('mmdet-resume', 'mmdet')
    rows: list[tuple[str, str, Write, str, tuple[str, ...]]] = [
        (
            'config',
            'meta.config is code, run by a resumed training',
            write_code,
            'either',
            trains,
        ),
        (
            'config-in-test',
            'meta.config is code, run by a resumed test',
            write_code,
            'refused',
            ('mmdet-resume',),
        ),
        (
            'config-read',
            'meta.config is code; a test does not resume',
            write_code,
            'accepted',
            ('test', 'mmdet'),
        ),
        (
            'optimizer',
            'the optimizer calls os.system',
            write_call,
            'refused',
            (*trains, *tests),
        ),
        (
            'meta-none',
            'meta is None',
            edited_float(lambda p: p.update(meta=None), source='epoch'),
            'refused',
            trains,
        ),
        (
            'meta-epoch',
            'the epoch is text',
            edited_float(
                lambda p: p['meta'].update(epoch='x'), source='epoch'
            ),
            'refused',
            trains,
        ),
        (
            'state-empty',
            'the state dict is empty',
            edited_float(lambda p: p.update(state_dict={}), source='epoch'),
            'refused',
            trains,
        ),
        (
            'good',
            'a good checkpoint',
            edited_float(lambda p: None, source='epoch'),
            'accepted',
            trains,
        ),
    ]
    return [
        Case(
            name=f'resume-{name}',
            kind='resume',
            effect=effect,
            write=write,
            source='epoch',
            expect=expect,
            tools=tools,
        )
        for name, effect, write, expect, tools in rows
    ]


def _state(change: Callable[[Good, list[Path]], None]) -> Write:
    """Return a function that writes a changed folder of finished units."""

    def write(good: Good, path: Path) -> None:
        shutil.copytree(good.path('state'), path)
        change(good, sorted(path.rglob('unit_*.pth')))

    return write


def _rewrite(
    change: Callable[[Any], Any],
) -> Callable[[Good, list[Path]], None]:
    def apply(good: Good, files: list[Path]) -> None:
        state = torch.load(files[0], weights_only=False)
        torch.save(change(state), files[0])

    return apply


def _content(
    make: Callable[[Good, bytes], bytes],
) -> Callable[[Good, list[Path]], None]:
    def apply(good: Good, files: list[Path]) -> None:
        files[0].write_bytes(make(good, files[0].read_bytes()))

    return apply


def _with(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, **changes}


def _states() -> list[Case]:
    rows: dict[str, tuple[str, Any]] = {
        'good': ('a good state', lambda good, files: None),
        'empty': ('an empty file', _content(lambda g, c: b'')),
        'cut': ('half a file', _content(lambda g, c: c[: len(c) // 2])),
        'text': ('a text file', _content(lambda g, c: b'hello\n')),
        'pickle': (
            'a pickle that runs code',
            _content(lambda g, c: pickle.dumps(Call(os.system, g.command))),
        ),
        'list': ('a list', _rewrite(lambda s: [1])),
        'digest-none': (
            'no digest',
            _rewrite(lambda s: _with(s, digest=None)),
        ),
        'codes-none': ('no codes', _rewrite(lambda s: _with(s, codes=None))),
        'codes-changed': (
            'other codes',
            _rewrite(
                lambda s: _with(
                    s,
                    codes={
                        k: torch.zeros_like(v) for k, v in s['codes'].items()
                    },
                )
            ),
        ),
        'codes-name': (
            'codes of another layer',
            _rewrite(
                lambda s: _with(s, codes={'no.such:weight': torch.zeros(1)})
            ),
        ),
        'scale-nan': (
            'NaN scales',
            _rewrite(
                lambda s: _with(
                    s,
                    quantizers={
                        n: {
                            k: v * math.nan if k == 'scale' else v
                            for k, v in q.items()
                        }
                        for n, q in s['quantizers'].items()
                    },
                )
            ),
        ),
        'result-none': (
            'no result',
            _rewrite(lambda s: _with(s, result=None)),
        ),
        'bomb': (
            'a tensor of 4 GiB by stride 0',
            _rewrite(
                lambda s: _with(
                    s,
                    codes={
                        k: torch.zeros(1).expand(2**30) for k in s['codes']
                    },
                )
            ),
        ),
    }
    return [
        Case(
            name=f'state-{name}',
            kind='state',
            effect=f'{effect} among the states to resume from',
            write=_state(change),
            source='state',
            expect='accepted',
            tools=('quantize',),
        )
        for name, (effect, change) in rows.items()
    ]


def cases() -> list[Case]:
    """List them."""
    tools = ('test', 'mmdet')
    wrong: tuple[tuple[str, Any], ...] = (
        ('none', None),
        ('list', []),
        ('text', 'x'),
        ('empty', {}),
    )
    return [
        *(
            Case(
                name=f'qat-{name}',
                kind=KIND,
                effect=effect,
                write=write,
                source='training',
                expect=expect,
                tools=tools,
            )
            for name, effect, write, expect in _qat()
        ),
        *(
            Case(
                name=f'qat-entry-{name}',
                kind=KIND,
                effect=f'the entry is {value!r}',
                write=_entry_of(value),
                source='training',
                tools=tools,
            )
            for name, value in wrong
        ),
        *_resume(),
        *_states(),
    ]
