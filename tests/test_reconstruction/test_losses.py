"""The default loss: noise to signal, for units of any scale."""

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.reconstruction.losses import MSEReconLoss, ReconContext

CONTEXT = ReconContext(unit='layer', step=0, num_steps=1)


def test_by_hand():
    target = torch.tensor([1.0, -1.0, 2.0, 0.0])
    quant = target + torch.tensor([0.5, 0.0, 0.0, -0.5])
    # Errors 0.25 twice of four, over a power of 6 / 4.
    assert MSEReconLoss()(quant, target, CONTEXT).item() == pytest.approx(
        0.125 / 1.5
    )
    plain = MSEReconLoss(normalize=False)
    assert plain(quant, target, CONTEXT).item() == pytest.approx(0.125)


def test_scale_of_the_unit_does_not_matter():
    target = torch.randn(4, 8)
    quant = target + 0.1 * torch.randn(4, 8)
    loss = MSEReconLoss()
    expected = loss(quant, target, CONTEXT)
    for scale in (1e-3, 1e3):
        found = loss(scale * quant, scale * target, CONTEXT)
        torch.testing.assert_close(found, expected)


def test_outputs_weigh_the_same():
    target = {'a': torch.randn(4, 8), 'b': 100 * torch.randn(2, 3)}
    quant = {name: 1.1 * value for name, value in target.items()}
    found = MSEReconLoss()(quant, target, CONTEXT)
    torch.testing.assert_close(found, torch.tensor(2 * 0.01))


def test_half_precision_is_summed_in_float32():
    target = torch.full((4096,), 100.0, dtype=torch.float16)
    found = MSEReconLoss()(target + 1, target, CONTEXT)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1e-4, rel=1e-3)


def test_dead_output_is_finite():
    zero = torch.zeros(3)
    assert MSEReconLoss()(zero, zero, CONTEXT).item() == 0
    assert MSEReconLoss()(zero + 1e-3, zero, CONTEXT).isfinite()


def test_setting_is_checked():
    with pytest.raises(SettingError, match='normalize=1'):
        MSEReconLoss(normalize=1)


def test_a_call_without_rows_costs_nothing():
    quant = torch.zeros(0, 4, requires_grad=True)
    loss = MSEReconLoss()(quant, torch.zeros(0, 4), CONTEXT)
    loss.backward()
    assert loss.item() == 0
