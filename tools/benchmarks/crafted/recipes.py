"""Quantized files with a valid digest and a malicious recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from .case import MODULE, Case, Good, Write, edited, redigest, replaced

__all__ = ['cases', 'pipepager']

KIND = 'recipe'
POINTS = (
    'weight',
    'activation',
    'attention',
    'query',
    'key',
    'value',
    'softmax',
)
# Matches no layer's name, after exponentially many tries.
BACKTRACKING = 're:((([a-z0-9_.])+)+)+!'


def pipepager(good: Good) -> dict[str, Any]:
    """Return a ``type`` whose build would run a command."""
    return {'type': 'pydoc.pipepager', 'cmd': good.command}


def in_recipe(keys: str, value: Any) -> Write:
    """Return a function that writes a file with one recipe entry changed.

    Args:
        keys: Dotted keys below ``recipe``.
        value: New value, or a function of the good files that returns it.
    """

    def write(good: Good, path: Path) -> None:
        payload = good.read('quantized')
        found = value(good) if callable(value) else value
        payload['recipe'] = replaced(payload['recipe'], keys, found)
        redigest(payload)
        torch.save(payload, path)

    return write


def _commands() -> list[tuple[str, str, Write]]:
    found = []
    for point in POINTS:
        found += [
            (
                f'{point}-type',
                f'the quantizer of {point} runs a command',
                in_recipe(f'qconfig.{point}', pipepager),
            ),
            (
                f'{point}-observer',
                f'the observer of {point} runs a command',
                in_recipe(f'qconfig.{point}.observer', pipepager),
            ),
            (
                f'{point}-override',
                f'an override of {point} runs a command',
                in_recipe(
                    'qconfig.overrides',
                    lambda g, p=point: [
                        {'pattern': '*', p: {'observer': pipepager(g)}}
                    ],
                ),
            ),
        ]
    types = {
        'import': (f'{MODULE}.Mark', 'importing a module runs it'),
        'scope': (f'{MODULE}::Mark', 'a scope is imported'),
        'scope-dot': (f'{MODULE}.registry.Mark', 'a scope is imported'),
        'os-system': ('os.system', 'os.system is the observer'),
        'builtin': ('builtins.eval', 'eval is the observer'),
        'empty-module': ('antigravity', 'a module is the observer'),
    }
    return [
        *found,
        *(
            (
                f'type-{n}',
                effect,
                in_recipe('qconfig.weight.observer', {'type': name}),
            )
            for n, (name, effect) in types.items()
        ),
        *(
            (
                f'quantizer-{n}',
                effect,
                in_recipe('qconfig.activation.type', name),
            )
            for n, (name, effect) in types.items()
        ),
        ('loss', 'the loss runs a command', in_recipe('loss', pipepager)),
        (
            'rewrites',
            'a rewrite runs a command',
            in_recipe('rewrites', lambda g: [pipepager(g)]),
        ),
        (
            'reconstruction-loss',
            'the loss of the reconstruction does',
            in_recipe('reconstruction', lambda g: {'loss': pipepager(g)}),
        ),
    ]


def _types() -> list[tuple[str, str, Write]]:
    observers = {
        'unknown': 'NoSuchObserver',
        'quantizer': 'AffineQuantizer',
        'identity': 'torch.nn.Identity',
        'base': 'Observer',
        'number': 7,
        'none': None,
        'list': ['MinMaxObserver'],
        'dict': {'type': 'MinMaxObserver'},
        'empty': '',
        'hook': 'PTQHook',
        'control': 'a\n\x1b[2Jb',
        'long': 'x' * 2**22,
    }
    quantizers = {
        'unknown': 'NoSuchQuantizer',
        'observer': 'MinMaxObserver',
        'identity': 'torch.nn.Identity',
        'base': 'Quantizer',
        'number': 7,
        'none': None,
    }
    return [
        *(
            (
                f'observer-{n}',
                f'an observer of the type {str(value)[:40]!r}',
                in_recipe('qconfig.activation.observer', {'type': value}),
            )
            for n, value in observers.items()
        ),
        *(
            (
                f'quantizer-{n}',
                f'a quantizer of the type {str(value)[:40]!r}',
                in_recipe('qconfig.activation.type', value),
            )
            for n, value in quantizers.items()
        ),
    ]


def _arguments() -> list[tuple[str, str, Write]]:
    of_observer: dict[str, dict[str, Any]] = {
        'bins-negative': {'type': 'HistogramObserver', 'num_bins': -5},
        'bins-zero': {'type': 'MSEObserver', 'num_bins': 0},
        'bins-huge': {'type': 'MSEObserver', 'num_bins': 10**10},
        'bins-float': {'type': 'MSEObserver', 'num_bins': 1e3},
        'candidates-huge': {'type': 'MSEObserver', 'num_candidates': 10**9},
        'percentile-nan': {
            'type': 'PercentileObserver',
            'percentile': math.nan,
        },
        'momentum': {'type': 'MovingAverageMinMaxObserver', 'momentum': -7},
        'unknown': {'type': 'MinMaxObserver', 'cmd': 'x'},
    }
    of_point: dict[str, Any] = {
        'num_bits': [4.0, '4', True, 0, -1, 32, 10**6, math.nan, None],
        'symmetric': ['False', 1, None],
        'signed': ['no', 2],
        'per_channel': ['False', 0.5],
        'observer': [None, 7, [], 'MinMaxObserver'],
        'nonsense': [1],
    }
    return [
        *(
            (
                f'argument-{n}',
                f'the observer gets {value}',
                in_recipe('qconfig.weight.observer', value),
            )
            for n, value in of_observer.items()
        ),
        *(
            (
                f'{key}-{i}',
                f'{key} is {value!r}',
                in_recipe(f'qconfig.weight.{key}', value),
            )
            for key, values in of_point.items()
            for i, value in enumerate(values)
        ),
    ]


def _patterns() -> list[tuple[str, str, Write]]:
    override = {'pattern': BACKTRACKING, 'weight': {'num_bits': 8}}
    many = [
        {'pattern': f'layer{i}', 'weight': {'num_bits': 8}}
        for i in range(20_000)
    ]
    return [
        (
            'backtracking-keep',
            'keep_float backtracks forever',
            in_recipe('qconfig.keep_float', [BACKTRACKING]),
        ),
        (
            'backtracking-edges',
            'edges backtracks forever',
            in_recipe('qconfig.edges', [BACKTRACKING]),
        ),
        (
            'backtracking-override',
            'an override backtracks forever',
            in_recipe('qconfig.overrides', [override]),
        ),
        (
            'backtracking-groups',
            'alternatives that all match',
            in_recipe(
                'qconfig.keep_float', ['re:(a|a|b|b|[a-z]|[a-z0-9._])*!']
            ),
        ),
        (
            'backtracking-reference',
            'a reference to a group',
            in_recipe('qconfig.keep_float', [r're:(.*)(.*)(.*)(.*)\1\2\3\4!']),
        ),
        (
            'shell-stars',
            'a shell pattern of 2,000 stars',
            in_recipe('qconfig.keep_float', ['*a' * 2000 + '!']),
        ),
        (
            'repeat-nested',
            'a pattern that unfolds to 10**9 states',
            in_recipe('qconfig.keep_float', ['re:(((a{1000}){1000}){1000})']),
        ),
        (
            'pattern-long',
            'a pattern of 8 MiB',
            in_recipe('qconfig.keep_float', ['re:' + '(a)' * 2**21 + 'a']),
        ),
        (
            'pattern-deep',
            'a pattern of 50,000 brackets',
            in_recipe(
                'qconfig.keep_float', ['re:' + '(' * 50_000 + ')' * 50_000]
            ),
        ),
        (
            'pattern-broken',
            'an invalid pattern',
            in_recipe('qconfig.keep_float', ['re:(']),
        ),
        (
            'pattern-number',
            'a pattern that is a number',
            in_recipe('qconfig.keep_float', [7]),
        ),
        (
            'pattern-unused',
            'a pattern that matches nothing',
            in_recipe('qconfig.keep_float', ['nothing']),
        ),
        (
            'patterns-many',
            '100,000 patterns',
            in_recipe('qconfig.edges', [f'layer{i}*' for i in range(100_000)]),
        ),
        (
            'overrides-many',
            '20,000 overrides',
            in_recipe('qconfig.overrides', many),
        ),
        (
            'overrides-matching',
            '20,000 overrides that match every layer',
            in_recipe(
                'qconfig.overrides',
                [{'pattern': '*', 'weight': {'num_bits': 8}}] * 20_000,
            ),
        ),
        (
            'overrides-dict',
            'overrides is a dict',
            in_recipe('qconfig.overrides', {'pattern': '*'}),
        ),
        (
            'overrides-numbers',
            'overrides is a list of numbers',
            in_recipe('qconfig.overrides', [1, 2]),
        ),
        (
            'override-bare',
            'an override without a pattern',
            in_recipe('qconfig.overrides', [{'weight': {'num_bits': 8}}]),
        ),
        (
            'keep-text',
            'keep_float is text',
            in_recipe('qconfig.keep_float', 'backbone'),
        ),
        (
            'keep-all',
            'keep_float keeps the whole model',
            in_recipe('qconfig.keep_float', ['*']),
        ),
    ]


def _whole() -> list[tuple[str, str, Write]]:
    return [
        ('qconfig-none', 'no qconfig', in_recipe('qconfig', None)),
        ('qconfig-list', 'qconfig is a list', in_recipe('qconfig', [])),
        (
            'qconfig-key',
            'an unknown key of qconfig',
            in_recipe('qconfig.nonsense', 1),
        ),
        (
            'qconfig-lacking',
            'recipe without qconfig',
            edited(lambda p: p['recipe'].pop('qconfig')),
        ),
        (
            'point-true',
            'a point that is True',
            in_recipe('qconfig.weight', True),
        ),
        (
            'point-text',
            'a point that is text',
            in_recipe('qconfig.softmax', 'x'),
        ),
        (
            'edge-bits-huge',
            'edge_bits of 10**9',
            in_recipe('qconfig.edge_bits', 10**9),
        ),
        (
            'edge-bits-zero',
            'edge_bits of 0',
            in_recipe('qconfig.edge_bits', 0),
        ),
        (
            'edge-bits-bool',
            'edge_bits of True',
            in_recipe('qconfig.edge_bits', True),
        ),
        (
            'other-bits',
            'more bits in the recipe than in the file',
            in_recipe('qconfig.weight.num_bits', 8),
        ),
    ]


def cases() -> list[Case]:
    """List them."""
    listed = [*_commands(), *_types(), *_arguments(), *_patterns(), *_whole()]
    # Parts that a restore does not build may stay in the file unread; a base
    # class or a setting without effect is harmless, too.
    unread = {
        'loss',
        'rewrites',
        'reconstruction-loss',
        'edge-bits-bool',
        'argument-momentum',
        'observer-0',
        'signed-0',
        'signed-1',
        'edge-bits-zero',
        'argument-candidates-huge',
        'symmetric-1',
        'symmetric-2',
    }
    return [
        Case(
            name=f'recipe-{name}',
            kind=KIND,
            effect=effect,
            write=write,
            expect='either' if name in unread else 'refused',
        )
        for name, effect, write in listed
    ]
