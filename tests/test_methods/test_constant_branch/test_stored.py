"""Outputs in place of modules, and what a file may say of them."""

import copy

import pytest
import torch
from torch import nn

from taskptq.methods.constant_branch import ConstantBranch
from taskptq.methods.constant_branch.stored import (
    MAX_VALUES,
    Form,
    StoredOutput,
    put,
    read_form,
)

PLAIN = {
    'name': 'place',
    'shapes': [[1, 5, 2], None],
    'axes': [0, None],
    'single': False,
    'source': ['x', 0],
}


def stored():
    form = Form(
        name='place',
        shapes=((1, 5, 2), None),
        axes=(0, None),
        single=False,
        source=('x', 0),
    )
    return StoredOutput(form)


def test_output_is_of_as_many_images_as_the_arguments():
    module = stored()
    value = torch.rand(1, 5, 2)
    module.store([value, None])
    first, second = module(x=torch.rand(3, 7))
    assert second is None
    assert torch.equal(first, value.expand(3, -1, -1))
    first += 1  # no later call may see this
    assert torch.equal(module(x=torch.rand(1, 7))[0], value)


def test_state_has_the_values():
    module = stored()
    module.store([torch.ones(1, 5, 2), None])
    assert list(module.state_dict()) == ['value0']
    other = stored()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x=torch.rand(1))[0], torch.ones(1, 5, 2))


def test_round_trip(queries):
    form = read_form(queries, PLAIN)
    assert form.to_dict() == PLAIN
    put(queries, 'place', StoredOutput(form))
    assert isinstance(queries.place, StoredOutput)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('name', 'nowhere', "'nowhere' is no module"),
        ('name', '', 'malformed'),
        ('name', 3, "'3' is no module"),
        ('shapes', [[1, MAX_VALUES + 1], None], 'no valid shape'),
        ('shapes', [[1, 2**11, 2**11], None], 'no valid shape'),
        ('shapes', [[1, -5], None], 'no valid shape'),
        ('shapes', [[2, 5], None], 'no valid shape'),
        ('shapes', [None], 'no valid shape'),
        ('shapes', 'x', 'malformed'),
        ('axes', [2**40, None], 'no valid shape'),
        ('axes', [0, 1], 'no valid shape'),
        ('single', True, 'malformed'),
        ('single', 1, 'malformed'),
        ('source', None, 'counts no images'),
        ('source', ['a b', 0], 'no argument'),
        ('source', [-1, 0], 'no argument'),
        ('source', ['x', 99], 'no argument'),
    ],
)
def test_files_are_not_trusted(queries, key, value, message):
    plain = {**copy.deepcopy(PLAIN), key: value}
    with pytest.raises(ValueError, match=message):
        read_form(queries, plain)


def test_replay_refuses_what_is_no_list(queries):
    for outputs, message in (
        (None, 'not a list'),
        ([PLAIN] * 1000, 'more stored outputs than modules'),
        ([{'name': 'place'}], 'malformed'),
    ):
        with pytest.raises(ValueError, match=message):
            ConstantBranch.replay(queries, {'outputs': outputs})
    assert isinstance(queries.place, nn.Linear)
