import pytest
import torch

from taskptq.core import QuantSpec
from taskptq.core.range_errors import RangeErrors


def plain_best(values, low, high, spec, weights, p):
    """One candidate and one channel at a time."""
    chosen = []
    for channel in range(values.shape[0]):
        errors = []
        for k in range(low.shape[0]):
            bottom, top = low[k, channel], high[k, channel]
            scale = (top - bottom) / (spec.num_levels - 1)
            zero = -torch.round(bottom / scale)
            codes = (values[channel] / scale).round() + zero
            codes = codes.clamp(0, spec.num_levels - 1)
            error = ((codes - zero) * scale - values[channel]).abs().pow(p)
            errors.append((error.double() * weights).sum())
        chosen.append(int(torch.stack(errors).argmin()))
    return chosen


@pytest.mark.parametrize('p', [0.7, 2.0, 2.4, 5.0])
@pytest.mark.parametrize('num_bits', [2, 8])
@pytest.mark.parametrize('chunk', [100, 1 << 17])
def test_the_best_is_that_of_exact_errors(p, num_bits, chunk, monkeypatch):
    monkeypatch.setattr('taskptq.core.range_errors.CHUNK_ELEMENTS', chunk)
    torch.manual_seed(0)
    spec = QuantSpec(num_bits=num_bits)
    values = torch.randn(3, 60) * torch.tensor([[1.0], [9.0], [1e-3]])
    weights = torch.randint(1, 9, (60,)).float()
    ratios = torch.linspace(0.1, 1, 20)[:, None]
    low, high = values.amin(dim=1) * ratios, values.amax(dim=1) * ratios
    errors = RangeErrors(
        values, spec=spec, signed=False, weights=weights, norm_p=p
    )
    found, _ = errors.best(low, high)
    best = plain_best(values, low, high, spec, weights.double(), p)
    expected = [low[k, channel] for channel, k in enumerate(best)]
    assert found.tolist() == [float(one) for one in expected]


def test_equal_grids_give_the_last():
    values = torch.linspace(0, 1, 50)[None]
    errors = RangeErrors(
        values, spec=QuantSpec(), signed=False, weights=None, norm_p=2.4
    )
    low = torch.tensor([[-0.0], [0.0]])
    found = errors.best(low, torch.ones(2, 1))[0]
    assert not torch.signbit(found).any()


def test_values_on_the_grid_leave_no_error():
    """All estimates are below what they can tell apart."""
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    errors = RangeErrors(
        values,
        spec=QuantSpec(num_bits=2),
        signed=False,
        weights=None,
        norm_p=2.4,
    )
    high = torch.tensor([[1.5], [3.0], [6.0], [3.1]])
    assert errors.best(torch.zeros(4, 1), high)[1].item() == 3.0


def test_estimates_decide_only_what_they_can_tell_apart(monkeypatch):
    """Two candidates closer than the margin are computed."""
    calls = []
    plain = RangeErrors._errors

    def counted(self, scale, zero, *, exact=True, **options):
        if exact:
            calls.append(scale.shape[0])
        return plain(self, scale, zero, exact=exact, **options)

    monkeypatch.setattr(RangeErrors, '_errors', counted)
    torch.manual_seed(0)
    values = torch.rand(1, 1000)
    errors = RangeErrors(
        values, spec=QuantSpec(), signed=False, weights=None, norm_p=2.4
    )
    high = torch.tensor([[0.1], [1.0], [1.000001], [5.0]])
    errors.best(torch.zeros(4, 1), high)
    assert calls == [2]
