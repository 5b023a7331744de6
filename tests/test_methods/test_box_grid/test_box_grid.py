"""The grid of box coordinates: points, targets, losses, decoding, error."""

import copy
import math

import pytest
import torch

from taskptq.methods.box_grid.box_grid import (
    BoxGrid,
    nonuniform_grid,
    one_sided_grid,
    uniform_grid,
)

SETTINGS = [
    dict(alpha=2, beta=1, num_intervals=10),
    dict(alpha=5, beta=1, num_intervals=5),
    dict(alpha=2, beta=0, num_intervals=10),
    dict(alpha=16, beta=0.3, num_intervals=16, one_sided=True),
    dict(alpha=3, beta=2, num_intervals=1),
]


@pytest.fixture(params=SETTINGS, ids=lambda s: f'a{s["alpha"]}')
def grid(request):
    return BoxGrid(**request.param)


def targets(grid):
    """Random ones, every grid point, both ends and values out of range."""
    low, high = float(grid.points[0]), float(grid.points[-1])
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(200, generator=generator) * (high - low) + low
    return torch.cat([inside, grid.points, torch.tensor([low - 3, high + 3])])


def test_numbers_of_the_rpn_grid():
    points = nonuniform_grid(2, beta=1, num_intervals=10)
    half = torch.tensor([0.1540, 0.3836, 0.7263, 1.2374, 2.0])
    expected = torch.cat([-half.flip(0), torch.zeros(1), half])
    torch.testing.assert_close(points, expected, atol=5e-5, rtol=0)


def test_numbers_of_the_rcnn_grid():
    points = nonuniform_grid(5, beta=1, num_intervals=5)
    half = torch.tensor([0.0583, 0.6473, 5.0])
    expected = torch.cat([-half.flip(0), half])
    torch.testing.assert_close(points, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize('alpha', [0.5, 2, 5, 16])
@pytest.mark.parametrize('beta', [0, 0.1, 1, 1.5])
@pytest.mark.parametrize('n', [1, 4, 5, 32])
def test_symmetric_grid(alpha, beta, n):
    points = nonuniform_grid(alpha, beta=beta, num_intervals=n)
    assert points.shape == (n + 1,)
    assert bool((points.diff() > 0).all())
    assert torch.equal(points, -points.flip(0))
    assert float(points[0]) == -alpha
    assert float(points[-1]) == alpha
    gaps = points[points >= 0].diff()
    assert bool((gaps.diff() > -1e-5).all())


@pytest.mark.parametrize('n', [4, 7])
def test_one_sided_grid_is_the_upper_half(n):
    points = one_sided_grid(5, beta=1, num_intervals=n)
    both = nonuniform_grid(5, beta=1, num_intervals=2 * n)
    torch.testing.assert_close(points, both[n:], atol=1e-6, rtol=0)
    assert float(points[0]) == 0


@pytest.mark.parametrize('make', [nonuniform_grid, one_sided_grid])
def test_small_beta_is_the_uniform_grid(make):
    low = -3 if make is nonuniform_grid else 0
    even = torch.linspace(low, 3, 9)
    for beta in (0, 1e-9, 1e-6):
        points = make(3, beta=beta, num_intervals=8)
        torch.testing.assert_close(points, even, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        uniform_grid(3, num_intervals=8), torch.linspace(-3, 3, 9)
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(alpha=0), 'alpha=0'),
        (dict(alpha=math.inf), 'alpha=inf'),
        (dict(beta=-1), 'beta=-1'),
        (dict(beta=1000), 'coincide'),
        (dict(num_intervals=0), 'num_intervals=0'),
        (dict(num_intervals=2.5), 'num_intervals=2.5'),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        BoxGrid(**{**SETTINGS[0], **changes})


def test_two_hot_is_a_distribution_with_the_target_as_mean(grid):
    values = targets(grid)
    hot = grid.two_hot(values)
    assert hot.shape == (*values.shape, grid.num_points)
    assert float(hot.min()) >= 0
    torch.testing.assert_close(hot.sum(-1), torch.ones(len(values)))
    clamped = values.clamp(float(grid.points[0]), float(grid.points[-1]))
    scale = max(1.0, float(grid.points[-1]))
    torch.testing.assert_close(
        hot @ grid.points, clamped, atol=1e-6 * scale, rtol=0
    )
    assert int((hot > 0).sum(-1).max()) <= 2


def test_two_hot_of_a_grid_point_is_one_hot(grid):
    torch.testing.assert_close(
        grid.two_hot(grid.points), torch.eye(grid.num_points)
    )


def test_two_hot_keeps_leading_axes(grid):
    values = torch.rand(3, 0, 4), torch.rand(3, 2, 4)
    for value in values:
        hot = grid.two_hot(value)
        assert hot.shape == (*value.shape, grid.num_points)


def test_uniform_logits_decode_to_the_middle(grid):
    value = grid.expectation(torch.zeros(7, grid.num_points))
    expected = grid.points.mean() if grid.one_sided else torch.tensor(0.0)
    torch.testing.assert_close(value, expected.expand(7), atol=1e-6, rtol=1e-6)


def test_expectation_of_a_two_hot_gives_the_target_back(grid):
    values = targets(grid)
    hot = grid.two_hot(values)
    decoded = grid(hot.log().clamp(min=-1e4))
    torch.testing.assert_close(
        decoded, hot @ grid.points, atol=2e-6 * grid.alpha, rtol=0
    )


def test_cross_entropy_is_the_sum_over_the_two_hot_target(grid):
    torch.manual_seed(0)
    values = targets(grid)
    logits = torch.randn(len(values), grid.num_points) * 3
    expected = -(grid.two_hot(values) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(grid.cross_entropy(logits, values), expected)


def test_gradient_of_the_cross_entropy_is_bounded(grid):
    torch.manual_seed(0)
    values = targets(grid)
    logits = torch.randn(len(values), grid.num_points) * 20
    logits.requires_grad_()
    grid.cross_entropy(logits, values).sum().backward()
    assert float(logits.grad.abs().max()) <= 1 + 1e-6
    expected = logits.detach().softmax(-1) - grid.two_hot(values)
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-5)


def test_entropy_between_certain_and_uniform(grid):
    uniform = torch.zeros(1, grid.num_points)
    sharp = uniform.clone()
    sharp[0, 0] = 100
    assert float(grid.entropy(uniform)) == pytest.approx(
        math.log(grid.num_points), rel=1e-5
    )
    assert float(grid.entropy(sharp)) == pytest.approx(0, abs=1e-5)


def test_entropy_gap_is_zero_at_the_target(grid):
    values = targets(grid)
    logits = grid.two_hot(values).log().clamp(min=-1e4)
    gap = grid.entropy_gap(logits, values)
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-5, rtol=0)
    # Sharper than a target between two points is no improvement here.
    middle = grid.points[:2].mean()[None]
    sharp = torch.zeros(1, grid.num_points)
    sharp[0, 0] = 100
    assert float(grid.entropy_gap(sharp, middle)) == pytest.approx(
        math.log(2), abs=1e-4
    )


def test_gradients_agree_with_finite_differences(grid):
    torch.manual_seed(0)
    grid = copy.deepcopy(grid).double()
    assert grid.points.dtype == torch.float64
    logits = torch.randn(5, grid.num_points, dtype=torch.float64)
    logits.requires_grad_()
    values = torch.randn(5, dtype=torch.float64)
    for function in (
        grid.expectation,
        grid.entropy,
        lambda z: grid.cross_entropy(z, values),
        lambda z: grid.entropy_gap(z, values),
    ):
        assert torch.autograd.gradcheck(function, (logits,))


def test_no_rows_give_zero_with_a_graph(grid):
    logits = torch.zeros(0, 4, grid.num_points, requires_grad=True)
    loss = grid.cross_entropy(logits, torch.zeros(0, 4)).sum()
    loss = loss + grid.entropy(logits).sum()
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_decoded_in_float(grid, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(50, grid.num_points) * 30).to(dtype)
    value = grid.expectation(logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, grid.expectation(logits.float()))
    loss = grid.cross_entropy(logits, torch.zeros(50, dtype=dtype))
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite().all())


def test_autocast_does_not_round_the_expectation(grid):
    torch.manual_seed(0)
    logits = torch.randn(50, grid.num_points)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = grid.expectation(logits)
        error = grid.expected_rms(logits, step=0.1)
    assert torch.equal(value, grid.expectation(logits))
    assert torch.equal(error, grid.expected_rms(logits, step=0.1))


def test_points_survive_a_cast_of_the_model(grid):
    before = grid.points.clone()
    model = torch.nn.Sequential(grid, torch.nn.Linear(1, 1)).half()
    assert model[1].weight.dtype == torch.float16
    assert torch.equal(grid.points, before)
    empty = BoxGrid(**SETTINGS[0]).to('meta')
    assert torch.equal(
        empty.to_empty(device='cpu').points, BoxGrid(**SETTINGS[0]).points
    )


def test_points_are_in_no_state_dict(grid):
    assert not grid.state_dict()
    assert not list(grid.parameters())


@pytest.mark.parametrize(
    ('setting', 'target'),
    [
        (SETTINGS[1], 0.0),
        (SETTINGS[1], 0.3),
        (SETTINGS[1], 2.0),
        (SETTINGS[0], 0.05),
    ],
)
@pytest.mark.parametrize('step', [0.02, 0.078])
def test_predicted_error_of_rounded_logits(setting, target, step):
    """Two-bin formula, and a measurement, agree with the prediction."""
    grid = BoxGrid(**setting)
    hot = grid.two_hot(torch.tensor([target]))
    logits = hot.log().clamp(min=-40)
    predicted = float(grid.expected_rms(logits, step=step))
    p = float(hot.max())
    low = int(hot.nonzero()[0, 1])
    gap = float(grid.points[low + 1] - grid.points[low])
    formula = step / math.sqrt(12) * math.sqrt(2) * p * (1 - p) * gap
    assert predicted == pytest.approx(formula, rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(20000, grid.num_points, generator=generator) - 0.5
    error = grid.expectation(logits + step * noise) - target
    assert float(error.square().mean().sqrt()) == pytest.approx(
        predicted, rel=0.06
    )


def test_predicted_error_takes_a_step_for_each_coordinate():
    grid = BoxGrid(**SETTINGS[1])
    torch.manual_seed(0)
    logits = torch.randn(6, 4, grid.num_points)
    steps = torch.tensor([0.1, 0.2, 0.4, 0.8])
    error = grid.expected_rms(logits, step=steps[:, None])
    assert error.shape == (6, 4)
    torch.testing.assert_close(
        error, grid.expected_rms(logits, step=1.0) * steps
    )


def test_round_trip_of_boxes():
    """Encode, two-hot, expectation, decode: below a thousandth of a pixel."""
    grid = BoxGrid(**SETTINGS[1])
    torch.manual_seed(0)
    anchors = torch.rand(500, 4) * 60 + 4
    boxes = anchors + torch.randn(500, 4) * 0.1 * anchors[:, [2, 3, 2, 3]]
    boxes[:, 2:] = boxes[:, 2:].clamp(min=3)
    stds = torch.tensor([0.1, 0.1, 0.2, 0.2])
    encoded = (
        torch.cat(
            [
                (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:],
                (boxes[:, 2:] / anchors[:, 2:]).log(),
            ],
            1,
        )
        / stds
    )
    assert float(encoded.abs().max()) < 5
    logits = grid.two_hot(encoded).log().clamp(min=-1e4)
    decoded = grid.expectation(logits) * stds
    back = torch.cat(
        [
            decoded[:, :2] * anchors[:, 2:] + anchors[:, :2],
            decoded[:, 2:].exp() * anchors[:, 2:],
        ],
        1,
    )
    assert float((back - boxes).abs().max()) < 1e-3
