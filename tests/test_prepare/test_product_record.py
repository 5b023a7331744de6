"""Records of products are read with distrust."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from taskptq.prepare.product_record import read_owner

OWNER = {
    'module': 'head',
    'methods': ['forward'],
    'points': [
        {
            'name': 'linear_0',
            'place': 'forward+1.0 linear',
            'roles': ['input', 'weight'],
            'axis': 0,
            'weight': 'head.fc.weight',
        },
        {
            'name': 'matmul_1',
            'place': 'forward+2.0 matmul',
            'roles': ['first', 'second'],
            'axis': None,
            'weight': '',
        },
    ],
}


def test_what_was_written_is_read() -> None:
    assert read_owner(OWNER) == OWNER


@pytest.mark.parametrize(
    'alter',
    [
        lambda o: o.pop('module'),
        lambda o: o.update(more=1),
        lambda o: o.update(module=3),
        lambda o: o.update(methods='forward'),
        lambda o: o.update(methods=['x' * 2000]),
        lambda o: o.update(points=[3]),
        lambda o: o.update(points=o['points'] * 2),
        lambda o: o.update(points=o['points'] * 10_000),
        lambda o: o['points'][0].pop('axis'),
        lambda o: o['points'][0].update(axis=-1),
        lambda o: o['points'][0].update(axis=True),
        lambda o: o['points'][0].update(axis=99),
        lambda o: o['points'][0].update(name='weight'),
        lambda o: o['points'][0].update(name='../x_0'),
        lambda o: o['points'][0].update(roles=['input']),
        lambda o: o['points'][0].update(roles=['input', 'other']),
        lambda o: o['points'][0].update(roles=['weight', 'weight']),
        lambda o: o['points'][0].update(place=None),
        lambda o: o['points'][0].update(weight=None),
    ],
)
def test_anything_else_is_refused(alter: Any) -> None:
    owner = copy.deepcopy(OWNER)
    alter(owner)
    with pytest.raises(ValueError, match=r'decisions\.products'):
        read_owner(owner)


@pytest.mark.parametrize('entry', [None, [], 'head', 3])
def test_no_dict_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match='a dict of module'):
        read_owner(entry)
