"""Walking a model, and replacing modules wherever it holds them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import torch
from torch import nn
from torch.nn.utils import parametrizations

from taskptq.prepare.tree import (
    is_scripted,
    open_modules,
    parameter_owners,
    parent_counts,
    replace_modules,
)

Pair = namedtuple('Pair', ['first', 'second'])


def test_walk_is_that_of_torch_where_nothing_is_closed() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared)
    assert list(open_modules(model)) == list(model.named_modules())
    assert parent_counts(model)[id(shared)] == 2


def test_scripted_and_parametrized_insides_do_not_show() -> None:
    model = nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Linear(2, 2))),
        parametrizations.weight_norm(nn.Linear(2, 2)),
    )
    assert [name for name, _ in open_modules(model)] == ['', '0', '1']
    assert is_scripted(model[0])
    names = {
        place
        for owners in parameter_owners(model).values()
        for place in [(name, path) for name, _, path in owners]
    }
    assert ('0', '0.weight') in names


def test_owners_of_a_shared_parameter() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    owners = parameter_owners(model)[id(model[0].weight)]
    assert [(name, path) for name, _, path in owners] == [
        ('0', 'weight'),
        ('1', 'weight'),
    ]


def test_every_place_is_replaced() -> None:
    old, new, other = nn.Linear(2, 2), nn.Identity(), nn.ReLU()
    model = nn.Module()
    model.child = old
    model.stage = nn.Sequential(other, old)
    vars(model)['alias'] = old
    model.steps = [old, [other, old]]
    model.pair = Pair(old, (other, {'a': old}))
    model.table = OrderedDict(a=old, b=[old])
    model.group = {old, other}
    numbers = model.numbers = list(range(10))
    steps, table = model.steps, model.table
    replace_modules(model, {id(old): new})
    assert model.child is model.stage[1] is model.alias is new
    assert steps is model.steps
    assert steps == [new, [other, new]]
    assert model.pair == Pair(new, (other, {'a': new}))
    assert type(model.pair) is Pair
    assert table is model.table
    assert table == OrderedDict(a=new, b=[new])
    assert model.group == {new, other}
    assert model.numbers is numbers


def test_endless_containers_end() -> None:
    old, new = nn.Linear(2, 2), nn.Identity()
    model = nn.Module()
    model.child = old
    model.loop = [old]
    model.loop.append(model.loop)
    replace_modules(model, {id(old): new})
    assert model.loop[0] is new


def test_children_of_what_comes_in_are_replaced_too() -> None:
    inner, outer = nn.Linear(2, 2), nn.Sequential()
    outer.append(inner)
    model = nn.Sequential(outer)
    new_inner, new_outer = nn.Identity(), nn.Sequential(inner)
    replace_modules(model, {id(inner): new_inner, id(outer): new_outer})
    assert model[0] is new_outer
    assert model[0][0] is new_inner
