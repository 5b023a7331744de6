import gc
import weakref
from typing import NamedTuple

import pytest
import torch

from taskptq.reconstruction.capture.nesting import (
    TensorSlot,
    flatten,
    is_float,
    named,
    unflatten,
)


class Pair(NamedTuple):
    first: object
    second: object


A, B = torch.ones(2), torch.zeros(3)
TREES = [
    A,
    None,
    (A, B),
    [A, (B, {'a': A, 'b': [None, 3]})],
    {'x': Pair(A, 'text'), 'y': ()},
    ((A,), {'mask': None, 'sizes': [(2, 3)]}),
]


@pytest.mark.parametrize('tree', TREES)
def test_round_trip(tree):
    leaves, skeleton = flatten(tree)
    again, same_skeleton = flatten(unflatten(leaves, skeleton))
    assert skeleton == same_skeleton
    assert all(x is y for x, y in zip(leaves, again, strict=True))
    rebuilt = unflatten(leaves, skeleton)
    assert type(rebuilt) is type(tree)


def test_leaves_come_in_order_and_may_repeat():
    leaves, skeleton = flatten(({'q': A, 'k': A}, [B]))
    assert [leaf is A for leaf in leaves] == [True, True, False]
    expected = ({'q': TensorSlot(0), 'k': TensorSlot(1)}, [TensorSlot(2)])
    assert skeleton == expected


def test_new_leaves_take_the_places_of_the_old():
    _, skeleton = flatten(Pair(A, [B]))
    rebuilt = unflatten([B, A], skeleton)
    assert isinstance(rebuilt, Pair)
    assert rebuilt.first is B
    assert rebuilt.second[0] is A


def test_other_objects_stay_themselves():
    strange = object()
    leaves, skeleton = flatten([strange, A])
    assert skeleton[0] is strange
    assert len(leaves) == 1


def test_named():
    assert named([A]) is A
    outputs = named([A, B])
    assert list(outputs) == ['0', '1']
    assert outputs['1'] is B


def test_is_float():
    assert is_float(A)
    assert is_float(A.bfloat16())
    assert not is_float(A.bool())
    assert not is_float(A.long())


class Leaf(torch.Tensor):
    """A tensor that a weak reference can follow."""


@pytest.mark.parametrize(
    'work',
    [
        lambda tree: flatten(tree),
        lambda tree: unflatten(*flatten(tree)),
    ],
    ids=['flatten', 'unflatten'],
)
def test_no_tensor_outlives_its_tree(work):
    # Without the collector only reference counts free a tensor.
    gc.collect()
    gc.disable()
    try:
        leaf = torch.ones(2).as_subclass(Leaf)
        alive = weakref.ref(leaf)
        work({'x': [leaf, (leaf, None)]})
        del leaf
        assert alive() is None
    finally:
        gc.enable()
