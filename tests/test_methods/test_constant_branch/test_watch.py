"""Outputs of a pass, and what they are for each image."""

import torch

from taskptq.methods.constant_branch.stored import MAX_VALUES
from taskptq.methods.constant_branch.watch import (
    OnlyCall,
    compare_numbers,
    same,
    unreached,
    watch,
)


def run(model, batch):
    return model(batch)


def test_calls_are_copied_and_repeated_ones_left_out(queries, images):
    names = ['place', 'head', 'layers.0', 'layers.0.self_attn']
    calls = watch(queries, images[0], forward=run, names=names)
    assert set(calls) == set(names)
    attended = calls['layers.0.self_attn']
    assert not attended.single
    assert attended.values[1] is None
    assert attended.sizes[0] == (2, 5, 16)

    def twice(model, batch):
        model(batch)
        return model(batch)

    assert watch(queries, images[0], forward=twice, names=names) == {}


def test_large_outputs_are_left_out():
    layer = torch.nn.Sequential(torch.nn.Identity())
    large = torch.zeros(1, MAX_VALUES + 1)
    assert watch(layer, large, forward=run, names=['0']) == {}


def test_unreached(queries, images):
    names = ['place', 'behind', 'head', 'layers.0.self_attn', 'layers.1']
    free = unreached(queries, images[0], forward=run, names=names)
    assert free == {'place', 'layers.0.self_attn'}


def call(*values, single=False, **sizes):
    return OnlyCall(values=list(values), single=single, sizes=sizes)


def test_same():
    one = torch.rand(2, 3)
    assert same(call(one, None), call(one.clone(), None))
    assert not same(call(one), call(one + 1))
    assert not same(call(one), call(None))
    assert not same(call(one), call(one, None))


def test_axis_of_the_images():
    row = torch.rand(1, 4)
    pair = (
        call(row.expand(3, 4), single=True, x=(5, 3), y=(3, 2)),
        call(row, single=True, x=(5, 1), y=(3, 2)),
    )
    form, values = compare_numbers('a', *pair, images=(3, 1))
    assert form.axes == (0,)
    assert form.source == ('x', 1)
    assert torch.equal(values[0], row)
    # No argument says how many images there are.
    assert compare_numbers('a', pair[0], call(row), images=(3, 1)) is None


def test_outputs_that_differ_by_image():
    values = torch.rand(3, 4)
    one = call(values, single=True, x=(3, 1))
    assert (
        compare_numbers(
            'a', one, call(values[:1], single=True, x=(1, 1)), images=(3, 1)
        )
        is None
    )
    other = call(values + 1, single=True, x=(1, 1))
    assert compare_numbers('a', one, other, images=(3, 1)) is None
    form, _ = compare_numbers('a', one, one, images=(3, 1))
    assert form.axes == (None,)
    assert form.source is None
