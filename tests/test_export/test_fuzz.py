"""Damaged files and altered payloads end in clear errors, never others."""

import copy
import math
import random

import pytest
import torch

from taskptq.export import (
    QuantizedCheckpointError,
    load,
    save,
    unpack_model,
    verify,
)
from taskptq.export.schema import compute_digest

VALUES = [
    None,
    0,
    -1,
    2**40,
    True,
    math.nan,
    'x' * 300,
    'café\n',
    b'x',
    [],
    {},
    {'a': {}},
    {1: 1},
    (1,),
    [[]],
    torch.tensor([]),
    torch.tensor(math.nan),
    torch.zeros(3, 3).t(),
    torch.ones(1).expand(10**5),
    object(),
    10**400,
]


def assert_clear(error):
    text = str(error)
    assert '\n' not in text
    assert 20 < len(text) < 1000


def outcome(act):
    """Return whether it went well; anything but a clear error is raised."""
    try:
        act()
    except QuantizedCheckpointError as error:
        assert_clear(error)
        return False
    return True


def test_flipped_bits_and_cut_ends(tmp_path, payload):
    path = tmp_path / 'q.pth'
    save(payload, path)
    whole = path.read_bytes()
    choice = random.Random(0)
    refused = 0
    for i in range(600):
        content = bytearray(whole)
        if i % 6 == 0:
            content = content[: choice.randrange(len(content))]
        else:
            for _ in range(1 + i % 3):
                place = choice.randrange(len(content))
                content[place] ^= 1 << choice.randrange(8)
        path.write_bytes(content)
        found = []
        if outcome(lambda found=found: found.append(load(path))):
            assert found[0]['digest'] == payload['digest']
        else:
            refused += 1
    assert refused > 300


def places(value, path=()):
    """Yield the paths to all parts of nested dicts and lists."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield (*path, key)
        yield from places(part, (*path, key))


def mutated(payload, choice):
    """Return a payload with one part replaced, removed, renamed or doubled."""
    payload = copy.deepcopy(payload)
    path = choice.choice(list(places(payload)))
    parent = payload
    for key in path[:-1]:
        parent = parent[key]
    kind = choice.randrange(5)
    if kind < 2:
        parent[path[-1]] = choice.choice(VALUES)
    elif kind == 2:
        parent.pop(path[-1])
    elif kind == 3 and isinstance(parent, dict):
        parent[choice.choice([3, None, 'new', ('a',)])] = parent.pop(path[-1])
    else:
        other = payload
        for key in choice.choice(list(places(payload))):
            other = other[key]
        parent[path[-1]] = other
    return payload


@pytest.mark.parametrize('start', range(4))
def test_altered_payloads(payload, new_net, start):
    choice = random.Random(start)
    refused = 0
    for _ in range(60):
        broken = mutated(payload, choice)
        try:
            broken['digest'] = compute_digest(broken)
        except (
            AttributeError,
            LookupError,
            RecursionError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            refused += not outcome(lambda p=broken: verify(p))
            continue
        net = new_net()
        before = copy.deepcopy(net.state_dict())
        if not outcome(lambda p=broken, n=net: unpack_model(p, n)):
            refused += 1
            after = net.state_dict()
            assert all(torch.equal(before[k], after[k]) for k in before)
    assert refused > 30
