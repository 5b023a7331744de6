"""Plain float checkpoints that do not fit the model."""

from __future__ import annotations

import math
from typing import Any

import torch

from .case import Case, edited_float

__all__ = ['cases']

KIND = 'misfit'
Payload = dict[str, Any]


def _state(payload: Payload) -> dict[str, Any]:
    return payload['state_dict']


def _replace(make: Any) -> Any:
    """Return a change of every tensor."""
    return edited_float(
        lambda p: p.update(
            state_dict={
                name: make(tensor) for name, tensor in _state(p).items()
            }
        )
    )


def _one(make: Any, *, ending: str = 'conv1.weight') -> Any:
    """Return a change of one tensor."""

    def change(payload: Payload) -> None:
        state = _state(payload)
        name = next(n for n in state if n.endswith(ending))
        state[name] = make(state[name])

    return edited_float(change)


def _drop_share(share: float) -> Any:
    def change(payload: Payload) -> None:
        state = _state(payload)
        for name in list(state)[: max(1, int(len(state) * share))]:
            del state[name]

    return edited_float(change)


def _many(payload: Payload) -> None:
    one = torch.zeros(1)
    _state(payload).update({f'k{i}': one for i in range(10**6)})


def _more(payload: Payload) -> None:
    state = _state(payload)
    state.update(
        {
            f'extra.{name}.{i}': tensor.clone()
            for name, tensor in list(state.items())
            for i in range(3)
        }
    )


def _case(name: str, effect: str, write: Any, expect: str = 'refused') -> Case:
    return Case(
        name=f'misfit-{name}',
        kind=KIND,
        effect=effect,
        write=write,
        source='float',
        expect=expect,
    )


def cases() -> list[Case]:
    """List them."""
    empty = {'empty': {}, 'none': None, 'list': [], 'text': 'x', 'number': 1}
    return [
        *(
            _case(
                f'state-{n}',
                f'state_dict is {value!r}',
                edited_float(lambda p, v=value: p.update(state_dict=v)),
            )
            for n, value in empty.items()
        ),
        _case(
            'file-empty',
            'the file holds an empty dict',
            edited_float(lambda p: p.clear()),
        ),
        _case(
            'file-list', 'the file holds a list', edited_float(lambda p: [1])
        ),
        _case(
            'file-tensor',
            'the file holds a tensor',
            edited_float(lambda p: torch.zeros(1)),
        ),
        _case(
            'other-names',
            'weights of another model',
            edited_float(
                lambda p: p.update(
                    state_dict={f'other.{n}': t for n, t in _state(p).items()}
                )
            ),
        ),
        _case(
            'backbone-only',
            'weights of the backbone alone',
            edited_float(
                lambda p: p.update(
                    state_dict={
                        n: t
                        for n, t in _state(p).items()
                        if n.startswith('backbone')
                    }
                )
            ),
        ),
        _case('lacks-one', 'lacks one weight', _drop_share(0.0)),
        _case('lacks-half', 'lacks half of the weights', _drop_share(0.5)),
        _case(
            'shape',
            'a weight has another shape',
            _one(lambda t: torch.cat([t, t])),
        ),
        _case(
            'shapes',
            'all weights have other shapes',
            _replace(lambda t: torch.zeros(3, 3, 3)),
        ),
        _case('text-among', 'a weight is text', _one(lambda t: 'x')),
        _case('none-among', 'a weight is None', _one(lambda t: None)),
        _case('sparse', 'a weight is sparse', _one(lambda t: t.to_sparse())),
        _case('meta', 'a weight has no data', _one(lambda t: t.to('meta'))),
        _case(
            'complex',
            'a weight is complex',
            _one(lambda t: t.to(torch.complex64)),
        ),
        _case(
            'stretched',
            'a weight of 4 GiB by stride 0',
            _one(lambda t: torch.zeros(1).expand(2**30)),
        ),
        _case(
            'stretched-all',
            'every weight by stride 0',
            _replace(lambda t: torch.zeros(1).expand(2**30)),
        ),
        _case(
            'nan',
            'a weight is NaN',
            _one(lambda t: torch.full_like(t, math.nan)),
        ),
        _case(
            'keys-int',
            'names are numbers',
            edited_float(
                lambda p: p.update(
                    state_dict=dict(enumerate(_state(p).values()))
                )
            ),
        ),
        _case(
            'keys-control',
            'a name that clears the terminal',
            edited_float(
                lambda p: p.update(
                    state_dict={
                        f'a\n\x1b[2J{n}': t for n, t in _state(p).items()
                    }
                )
            ),
        ),
        _case(
            'more',
            'three unknown tensors for each known one',
            edited_float(_more),
        ),
        _case('million', '10**6 unknown tensors', edited_float(_many)),
        _case(
            'half-precision',
            'good weights as float16',
            _replace(lambda t: t.half() if t.is_floating_point() else t),
            'accepted',
        ),
    ]
