"""The soft distortion has the values of the score, and a gradient."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.methods.selective_focus import SoftDistortionLoss
from taskptq.methods.selective_focus.soft_distortion import soft_distortion
from taskptq.reconstruction.losses import ReconContext

GAMMA = 0.02


def distortion(shift, *, presence=(1.0, 1.0), target=(1.0, 1.0)):
    rows = torch.tensor([0.3, 0.6])[None, :, None].expand(1, 2, 5)
    return float(
        soft_distortion(
            rows + shift,
            rows,
            presence=torch.tensor([presence]),
            target_presence=torch.tensor([target]),
            gamma=GAMMA,
        )
    )


def test_values_by_hand():
    assert distortion(0.0) == 0
    assert distortion(GAMMA) == pytest.approx(0.5, abs=1e-5)
    assert distortion(0.0, presence=(1, 0)) == pytest.approx(0.5)
    assert distortion(0.0, presence=(0.5, 1)) == pytest.approx(0.25)
    assert distortion(9.0) == pytest.approx(1, abs=0.01)
    # Queries that are no lane in either model may be anywhere.
    assert distortion(0.3, presence=(0, 0), target=(0, 0)) == 0


def test_rows_that_one_of_two_lanes_has_cost_their_share():
    rows = torch.full((1, 1, 4), 0.5)
    shown = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    kept = {'target_presence': torch.ones(1, 1, 4), 'gamma': GAMMA}
    assert soft_distortion(rows, rows, presence=shown, **kept) == 0.25
    # Where a row is shown by one alone, its x says nothing.
    moved = rows + (1 - shown) * 0.3
    assert soft_distortion(moved, rows, presence=shown, **kept) == 0.25
    # With all rows of a lane alike, the value is that of whole lanes.
    queries = torch.tensor([[0.3]])
    by_row = queries[..., None].expand(1, 1, 4)
    other = torch.rand(1, 1, 4)
    torch.testing.assert_close(
        soft_distortion(other, rows, presence=by_row, **kept),
        soft_distortion(
            other,
            rows,
            presence=queries,
            target_presence=torch.ones(1, 1),
            gamma=GAMMA,
        ),
    )


class Lines:
    """Adapter of two queries."""

    def soft_lines(self, heads):
        return heads['rows'], heads['logits'].sigmoid()


def heads(rows, logits):
    return {'rows': rows, 'logits': logits}


def context(adapter, *, unit=''):
    return ReconContext(unit=unit, step=0, num_steps=1, adapter=adapter)


def test_gradient_goes_towards_the_float_model():
    target = torch.full((1, 2, 4), 0.5)
    rows = (target + 0.3).requires_grad_()
    logits = torch.tensor([[0.0, 3.0]], requires_grad=True)
    loss = SoftDistortionLoss()
    value = loss(
        heads(rows, logits),
        heads(target, torch.tensor([[4.0, -4.0]])),
        context(Lines()),
    )
    value.backward()
    # Far beyond gamma, lanes are still drawn back.
    assert (rows.grad[0, 0] > 0).all()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


@pytest.mark.parametrize(
    ('adapter', 'unit'), [(SimpleNamespace(), ''), (Lines(), 'block')]
)
def test_it_needs_lines_of_the_whole_network(adapter, unit):
    found = heads(torch.zeros(1, 2, 4), torch.zeros(1, 2))
    with pytest.raises(ValueError, match='needs queries that are lines'):
        SoftDistortionLoss()(found, found, context(adapter, unit=unit))
