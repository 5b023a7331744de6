"""Features in the directions that vary most."""

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.methods.binarydm import ProjectedFeatureLoss, principal_directions
from taskptq.reconstruction.losses import ReconContext


def planar(rows=64, seed=0):
    """Rows that lie in the plane of the first two of six channels."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(rows, 6)
    found[:, :2] = torch.randn(rows, 2, generator=generator)
    return found


def test_directions_are_orthonormal_and_leading():
    moment = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    basis = principal_directions(moment, rank=2)
    torch.testing.assert_close(
        basis, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    )


def test_errors_outside_of_the_directions_are_free():
    teacher = planar()
    loss = ProjectedFeatureLoss(share=0.3)
    loss.prepare('a', teacher)
    outside = teacher + 5 * torch.eye(6)[4]
    assert loss.compare(outside, teacher, name='a').item() < 1e-10
    inside = teacher + torch.eye(6)[0]
    power = teacher.square().sum(dim=1).mean().item()
    assert loss.compare(inside, teacher, name='a').item() == pytest.approx(
        1 / power, rel=1e-4
    )


def test_prepared_directions_stay():
    teacher = planar()
    loss = ProjectedFeatureLoss(share=0.3)
    loss.prepare('a', teacher)
    basis = loss._moments['a'].directions(teacher).clone()
    turned = teacher.flip(-1)
    loss.compare(turned.clone().requires_grad_(), turned, name='a')
    torch.testing.assert_close(loss._moments['a'].directions(teacher), basis)


def test_a_unit_learns_its_directions_from_what_it_sees():
    loss = ProjectedFeatureLoss(share=0.3)
    context = ReconContext(unit='block', step=0, num_steps=4)
    for seed in range(4):
        teacher = planar(seed=seed)
        outside = (teacher + torch.eye(6)[5]).requires_grad_()
        assert loss(outside, teacher, context).item() < 1e-8
    with torch.no_grad():
        # Measuring a unit is no step.
        count = loss._moments['block:0'].count
        loss(planar(), planar(), context)
        assert loss._moments['block:0'].count == count


@pytest.mark.parametrize('share', [0, 1.5])
def test_settings_are_checked(share):
    with pytest.raises(SettingError, match='share'):
        ProjectedFeatureLoss(share=share)
