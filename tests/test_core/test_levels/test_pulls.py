"""Pulls against figures worked out by hand."""

import pytest
import torch

from taskptq.core.levels.estimators import clipped
from taskptq.core.levels.pulls import (
    PULLS,
    BacktrackPull,
    FixedPull,
    FlipPull,
    MixturePull,
    backtracked_channels,
    flip_gamma,
)
from taskptq.core.settings import SettingError

# One channel of binary weights with alpha = 0.5
ALPHA = 0.5
W = torch.tensor([[0.6, -0.2, 0.1, -0.9]])
BEFORE = torch.tensor([[0.6, 0.05, 0.1, -0.9]])
GRADIENT = torch.tensor([[0.3, -0.4, 0.2, 0.1]])
LEVELS = torch.tensor([[-ALPHA, ALPHA]])


def codes_of(weight: torch.Tensor) -> torch.Tensor:
    return (weight >= 0).long()


VALUES = LEVELS.gather(1, codes_of(W))


def test_flip_gamma():
    gamma = flip_gamma(codes_of(W), codes_of(BEFORE), GRADIENT)
    torch.testing.assert_close(gamma, torch.tensor([[0.1]]))


def test_flip_gamma_has_limits():
    found = (codes_of(W), codes_of(BEFORE), GRADIENT)
    assert flip_gamma(*found, high=2e-4).item() == pytest.approx(2e-4)
    same = (codes_of(W), codes_of(W), GRADIENT)
    assert flip_gamma(*same, low=1e-5).item() == pytest.approx(1e-5)


def test_flip_pull_with_the_task_part():
    pull = FlipPull()
    first = pull.gradient(
        BEFORE, LEVELS.gather(1, codes_of(BEFORE)), codes_of(BEFORE), GRADIENT
    )
    assert first.eq(0).all()
    added = pull.gradient(W, VALUES, codes_of(W), GRADIENT)
    assert pull.flip_rate == 0.25
    # The gradient of the weight's sign is alpha times that of its level
    task = ALPHA * GRADIENT * clipped(W, LEVELS, limit=1.0)
    torch.testing.assert_close(
        task + added, torch.tensor([[0.16, -0.17, 0.06, 0.01]])
    )


def test_fixed_pull_is_the_gradient_of_the_reconstruction_error():
    weight = W.clone().requires_grad_()
    (0.5 * (weight - VALUES).square().sum()).backward()
    added = FixedPull(gamma=1.0).gradient(W, VALUES, codes_of(W), GRADIENT)
    torch.testing.assert_close(added, weight.grad)
    torch.testing.assert_close(added, torch.tensor([[0.1, 0.3, -0.4, -0.4]]))


def test_mixture_pull_goes_to_the_means():
    weight = torch.tensor([[-0.8, -0.5, -0.1, 0.2, 0.4, 0.9]])
    pull = MixturePull(relative=False, tau=0.1)
    added = pull.gradient(weight, weight, weight, weight)
    moved = weight - added
    inner = (weight > -0.45) & (weight < 0.4)
    assert (moved.abs() > weight.abs())[inner].all()


def test_relative_mixture_pull_has_a_share_of_the_gradients_size():
    weight = torch.linspace(-1, 1, 50)[None]
    gradient = torch.full_like(weight, 3.0)
    added = MixturePull(tau=0.01).gradient(weight, weight, weight, gradient)
    assert added.square().mean().sqrt().item() == pytest.approx(0.03)


def test_mixture_is_updated_every_few_steps():
    pull = MixturePull(every=2)
    weight = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    seen = []
    for _ in range(3):
        pull.gradient(weight, weight, weight, weight)
        seen.append(pull.mixture)
    assert seen[0] is seen[1]
    assert seen[1] is not seen[2]


@pytest.mark.parametrize(
    ('norms', 'expected'),
    [((1, 2, 3, 4, 5), [1]), ((5, 1, 4, 2, 3), [1, 4])],
)
def test_backtracked_channels(norms, expected):
    scales = torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3])
    chosen = backtracked_channels(scales, torch.tensor(norms).float())
    assert chosen.nonzero().flatten().tolist() == expected


def test_backtrack_adds_the_last_value_to_chosen_channels():
    pull = BacktrackPull(strength=0.2)
    scales = torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3])[:, None]
    before = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    assert pull.after_step(before, scales) is None
    moved = pull.after_step(before, scales)
    assert moved.flatten().tolist() == pytest.approx([1, 2.4, 3, 4, 5])


def test_pulls_write_no_state_into_files():
    for name, kind in PULLS.items():
        pull = kind()
        pull.gradient(W, VALUES, codes_of(W), GRADIENT)
        pull.after_step(W, VALUES)
        assert not pull.state_dict(), name


@pytest.mark.parametrize('kind', [FixedPull, BacktrackPull, MixturePull])
def test_unusable_strengths_are_refused(kind):
    name = {'FixedPull': 'gamma', 'MixturePull': 'tau'}.get(
        kind.__name__, 'strength'
    )
    with pytest.raises(SettingError, match=name):
        kind(**{name: -1.0})
