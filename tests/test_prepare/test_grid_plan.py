import pytest

from taskptq.prepare.grid_plan import (
    ABSORBED,
    GRID,
    MOVER,
    OTHER,
    PRODUCT,
    SMOOTH,
    SQUASH,
    SUM,
    Operator,
    gated_tensors,
    plan_grids,
    plan_residuals,
)


def op(kind, inputs, output, **options):
    return Operator(
        name=f'{kind}:{output}',
        kind=kind,
        inputs=tuple(inputs.split()),
        outputs=(output,),
        **options,
    )


def sources(operators, **options):
    options.setdefault('outputs', ())
    found = plan_grids(operators, **options)
    return [tuple(grid.sources) for grid in found]


def test_a_convolution_before_its_only_quantizer_is_complete():
    chain = [
        op(PRODUCT, 'x', 'a'),
        op(ABSORBED, 'a', 'b'),
        op(GRID, 'b', 'c'),
    ]
    assert sources(chain) == []
    # Its readers would need two grids on one tensor.
    assert sources([*chain, op(GRID, 'b', 'd')]) == [('b',)]


def test_both_sides_of_a_residual_sum_and_the_sum_are_wanted():
    block = [
        op(PRODUCT, 'in', 'stem'),
        op(GRID, 'stem', 'q'),
        op(PRODUCT, 'q', 'branch'),
        op(SUM, 'branch stem', 'sum'),
        op(ABSORBED, 'sum', 'relu'),
        op(GRID, 'relu', 'q2'),
        op(OTHER, 'relu', 'y'),
    ]
    assert sources(block) == [('stem',), ('branch',), ('relu',)]


def test_grids_that_no_integer_layer_reads_stay_apart():
    parts = [
        op(GRID, 'content', 'a'),
        op(GRID, 'position', 'b'),
        op(SUM, 'a b', 'both'),
        op(MOVER, 'both', 'moved'),
    ]
    assert sources([*parts, op(OTHER, 'moved', 'y')]) == []
    assert sources([*parts, op(GRID, 'moved', 'y')]) == [('both',)]


@pytest.mark.parametrize('sides', ['branch stem', 'stem branch'])
def test_what_a_convolution_adds_gets_a_grid(sides):
    block = [
        op(ABSORBED, 'in', 'stem'),
        op(GRID, 'stem', 'q'),
        op(PRODUCT, 'q', 'branch'),
        op(SUM, sides, 'sum', adds=True),
        op(SUM, 'sum stem', 'concatenated'),
        op(SUM, 'sum stem', 'added', adds=True),
    ]
    (grid,) = plan_residuals(block)
    assert (grid.sources, grid.replaced) == (['stem'], [f'{GRID}:q'])


def test_a_sum_with_a_float_side_stays_float():
    block = [
        op(PRODUCT, 'x', 'a'),
        op(OTHER, 'x', 'b'),
        op(SUM, 'a b', 'c'),
        op(GRID, 'c', 'd'),
    ]
    assert sources(block) == [('a',)]


def test_what_only_moves_shares_one_grid():
    chain = [
        op(PRODUCT, 'x', 'a'),
        op(MOVER, 'a', 'b'),
        op(MOVER, 'b', 'c'),
        op(GRID, 'c', 'd'),
    ]
    (grid,) = plan_grids(chain, outputs=())
    assert (grid.sources, grid.moved) == (['a'], ['b', 'c'])
    assert grid.replaced == ['grid:d']
    assert not grid.free


def test_what_moves_from_a_quantizer_keeps_its_grid():
    block = [
        op(GRID, 'x', 'q'),
        op(PRODUCT, 'q', 'branch'),
        op(MOVER, 'q', 'moved'),
        op(GRID, 'moved', 'q2'),
        op(SUM, 'branch moved', 'sum'),
        op(GRID, 'sum', 'q3'),
    ]
    assert sources(block) == [('branch',)]


def test_outputs_and_chosen_tensors_stay_float():
    chain = [op(PRODUCT, 'x', 'a'), op(ABSORBED, 'a', 'y')]
    assert sources(chain, outputs=['y']) == []
    assert sources(chain) == [('y',)]
    chain = [op(PRODUCT, 'x', 'a'), op(OTHER, 'a', 'y')]
    assert sources(chain, keep_float=['a']) == []


SILU = [
    op(PRODUCT, 'x', 'a'),
    op(SQUASH, 'a', 's'),
    op(SMOOTH, 'a s', 'm'),
    op(GRID, 'm', 'q'),
    op(PRODUCT, 'q', 'y'),
]


@pytest.mark.parametrize(
    ('gates', 'expected'),
    [((), [('a',)]), (('a',), [('a',), ('s',)])],
)
def test_gates_run_in_integers_if_asked(gates, expected):
    assert sources(SILU, gates=gates, outputs=['y']) == expected


def test_a_gate_leaves_scales_of_channels_free():
    (grid,) = plan_grids(SILU, outputs=['y'])
    assert grid.gated
    assert grid.free
    first, _ = plan_grids(SILU, outputs=['y'], gates=['a'])
    assert first.gated
    assert not first.free


def test_a_product_of_two_tensors_is_no_gate_of_its_own_input():
    chain = [
        op(PRODUCT, 'x', 'a'),
        op(SQUASH, 'a', 's'),
        op(SMOOTH, 'a other', 'm'),
        op(SMOOTH, 'm s', 'y'),
    ]
    (grid,) = plan_grids(chain, outputs=['y'])
    assert not grid.gated


def test_scales_of_channels_fit_behind_convolutions_alone():
    chain = [
        op(PRODUCT, 'x', 'a'),
        op(ABSORBED, 'a', 'b'),
        op(GRID, 'b', 'c', per_channel=True),
    ]
    assert sources(chain) == []
    gate = [*SILU[:3], op(GRID, 'm', 'q', per_channel=True), SILU[4]]
    assert ('m',) in sources(gate, gates=['a'], outputs=['y'])


def test_gates_are_found_with_their_outputs():
    assert gated_tensors(SILU) == {'a': 'm'}
    assert gated_tensors([op(PRODUCT, 'x', 'a'), op(OTHER, 'a', 'y')]) == {}


def test_what_the_network_returns_as_well_gets_a_grid_of_its_own():
    chain = [op(PRODUCT, 'x', 'a'), op(GRID, 'a', 'b'), op(PRODUCT, 'b', 'y')]
    assert sources(chain, outputs=('y',)) == []
    (grid,) = plan_grids(chain, outputs=('y',), returned=('a',))
    assert (grid.sources, grid.replaced) == (['a'], ['grid:b'])
    # A ReLU behind it is not part of what is returned.
    chain[1:1] = [op(ABSORBED, 'a', 'r')]
    chain[2] = op(GRID, 'r', 'b')
    found = sources(chain, outputs=('y',), returned=('a',))
    assert ('a',) in found
