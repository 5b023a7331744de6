"""The error formula on known logits, its bins, and the choice of a grid."""

import json
import math

import pytest
import torch

from small_objects.analysis.grid_choice import choose_grid
from small_objects.analysis.grid_error import (
    compare_boxes,
    compare_expectations,
    measure_bits,
    observed_step,
    round_logits,
    round_values,
    summarize,
)
from taskptq.methods.box_grid.box_grid import BoxGrid

GRID = BoxGrid(5.0, beta=1.0, num_intervals=5)


def two_point_logits(count=4000, seed=0):
    """Predictions on two neighboring points, with all shares of them."""
    generator = torch.Generator().manual_seed(seed)
    target = 0.6 * (2 * torch.rand(count, 4, generator=generator) - 1)
    share = GRID.two_hot(target)
    noise = 0.2 * torch.randn(share.shape, generator=generator)
    return (share.clamp(min=1e-4)).log() + noise


def test_rounding_keeps_within_half_a_step():
    values = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    rounded, step = round_values(values, num_bits=4, ch_axis=1)
    assert step.shape == (4,)
    assert ((rounded - values).abs() <= step / 2 + 1e-6).all()
    assert all(len(column.unique()) <= 16 for column in rounded.T)
    _, whole = round_values(values, num_bits=4)
    assert whole.shape == ()
    assert whole >= step.max() * 0.99


@pytest.mark.parametrize(
    ('granularity', 'shape'),
    [('tensor', ()), ('coordinate', (4, 1)), ('logit', (4, 6))],
)
def test_steps_broadcast_to_the_logits(granularity, shape):
    logits = two_point_logits(200)
    rounded, step = round_logits(logits, num_bits=6, granularity=granularity)
    assert step.shape == shape
    assert ((rounded - logits).abs() <= step / 2 + 1e-5).all()
    with pytest.raises(ValueError, match='granularity'):
        round_logits(logits, num_bits=6, granularity='row')


def test_the_formula_holds_for_small_steps():
    logits = two_point_logits()
    for num_bits in (8, 6):
        changed, step = round_logits(logits, num_bits=num_bits)
        found = compare_expectations(logits, changed, grid=GRID, step=step)
        assert found['ratio'] == pytest.approx(1, abs=0.1)
        assert found['correlation'] > 0.99
        assert (
            sum(one['count'] for one in found['bins']) <= logits.shape[0] * 4
        )


def test_the_formula_fails_for_coarse_steps_and_says_so():
    logits = two_point_logits()
    changed, step = round_logits(logits, num_bits=2)
    found = compare_expectations(logits, changed, grid=GRID, step=step)
    changed, step = round_logits(logits, num_bits=8)
    fine = compare_expectations(logits, changed, grid=GRID, step=step)
    assert abs(math.log(found['worst'])) > abs(math.log(fine['worst']))


def test_two_hot_values_of_the_dossier():
    # (p, 1 - p) with gap d: s / sqrt(12) sqrt(2) p (1 - p) d
    grid, step = GRID, 1.33
    points = grid.points
    gap = float(points[3] - points[2])
    logits = torch.full((1, 4, 6), -60.0)
    logits[..., 2:4] = 0.0
    changed, _ = round_logits(logits, num_bits=8)
    found = compare_expectations(
        logits, changed, grid=grid, step=torch.tensor(step)
    )
    expected = step / math.sqrt(12) * math.sqrt(2) * 0.25 * gap
    assert found['predicted'] == pytest.approx(expected, rel=1e-4)


def test_observed_step_is_that_of_uniform_errors():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5000, 4, 6, generator=generator)
    step = torch.tensor([0.1, 0.2, 0.4, 0.8])[:, None]
    noise = (torch.rand(logits.shape, generator=generator) - 0.5) * step
    found = observed_step(logits, logits + noise)
    torch.testing.assert_close(found, step, rtol=0.03, atol=0)
    # A shift of all logits changes nothing.
    shift = torch.randn(5000, 4, 1, generator=generator)
    torch.testing.assert_close(
        observed_step(logits, logits + noise + shift), found
    )


def test_boxes_scale_with_their_size():
    logits = two_point_logits(2000)
    changed, step = round_logits(logits, num_bits=6)

    def decode(size):
        def boxes(values):
            return size * values

        return boxes

    small = compare_boxes(
        logits, changed, grid=GRID, step=step, decode=decode(10)
    )
    large = compare_boxes(
        logits, changed, grid=GRID, step=step, decode=decode(100)
    )
    assert large['measured'] == pytest.approx(10 * small['measured'])
    assert large['predicted'] == pytest.approx(
        10 * small['predicted'], rel=1e-3
    )
    assert small['ratio'] == pytest.approx(1, abs=0.15)


def test_a_box_error_follows_the_derivatives():
    logits = two_point_logits(2000)
    changed, step = round_logits(logits, num_bits=8)

    def decode(values):
        center, size = 40 * values[:, :2], 40 * values[:, 2:].exp()
        return torch.cat([center - size / 2, center + size / 2], dim=1)

    found = compare_boxes(logits, changed, grid=GRID, step=step, decode=decode)
    assert found['ratio'] == pytest.approx(1, abs=0.1)


def test_bins_hold_all_values_and_skip_nothing_but_zeros():
    predicted = torch.linspace(0.1, 1, 100)
    sign = torch.tensor([1.0, -1.0]).repeat(50)
    found = summarize(predicted, 2 * sign * predicted, num_bins=10)
    assert [one['count'] for one in found['bins']] == [10] * 10
    assert found['ratio'] == pytest.approx(2)
    assert found['worst'] == pytest.approx(2)
    assert found['correlation'] == pytest.approx(1)
    with pytest.raises(ValueError, match='at least one'):
        summarize(predicted[:0], predicted[:0])
    nothing = summarize(torch.zeros(6), torch.zeros(6), smallest=1e-9)
    assert nothing['bins'] == []
    assert nothing['ratio'] is None
    assert nothing['worst'] is None


def test_measure_bits_is_plain_and_orders_the_bits():
    found = measure_bits(two_point_logits(1000), grid=GRID, bits=(8, 4))
    json.dumps(found, allow_nan=False)
    assert found['8']['measured'] < found['4']['measured']
    assert found['8']['direct'] < found['4']['direct']
    places = found['8']['by_location']
    assert places[0]['low'] == 0
    assert sum(one['count'] for one in places) == 4000


def test_choice_of_a_grid():
    generator = torch.Generator().manual_seed(2)
    # Laplace with a deviation of 0.3: refined boxes lie near 0.
    uniform = torch.rand(20000, generator=generator) - 0.5
    target = -0.21 * uniform.sign() * (1 - 2 * uniform.abs()).log()
    settings = [
        {'alpha': alpha, 'beta': beta, 'num_intervals': 5}
        for alpha in (0.2, 2.0, 5.0)
        for beta in (0.0, 1.0)
    ]
    ranked = choose_grid(target, make=BoxGrid, settings=settings, spread=0.05)
    assert [one['total'] for one in ranked] == sorted(
        one['total'] for one in ranked
    )
    by_setting = {(one['alpha'], one['beta']): one for one in ranked}
    # A narrow grid cuts off, an even one wastes its points.
    assert by_setting[0.2, 0.0]['outside'] > 0.2
    assert by_setting[5.0, 0.0]['outside'] == 0
    assert by_setting[5.0, 1.0]['rounding'] < by_setting[5.0, 0.0]['rounding']
    assert by_setting[0.2, 0.0]['clipping'] > by_setting[2.0, 0.0]['clipping']
    with pytest.raises(ValueError, match='0 targets'):
        choose_grid(target[:0], make=BoxGrid, settings=settings)
