import pytest
import torch

from taskptq.analysis.sensitivity.grids import (
    candidate_grids,
    check_candidates,
)
from taskptq.analysis.sensitivity.survey import TensorSurvey
from taskptq.core import AffineQuantizer, QuantSpec


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('ch_axis', [None, 0])
def test_more_bits_leave_less_error(symmetric, ch_axis):
    x = torch.randn(3, 500) * torch.tensor([[1.0], [4.0], [0.1]])
    quantizer = AffineQuantizer(
        QuantSpec(num_bits=8, symmetric=symmetric, ch_axis=ch_axis)
    )
    quantizer.set_bounds(signed=True)
    ends = (x.amin(1), x.amax(1)) if ch_axis == 0 else (x.min(), x.max())
    quantizer.set_range(*ends)
    seen = TensorSurvey(quantizer)
    seen.add(x)
    grids = candidate_grids(quantizer, seen, candidates=(2, 4, 6, 8, 12, 16))
    assert grids[8] == quantizer.fake_quantize
    errors = [float((grid(x) - x).square().mean()) for grid in grids.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[3]
    codes = grids[4](x)[0].unique()
    assert len(codes) <= 16


def test_unsigned_where_nothing_is_negative():
    quantizer = AffineQuantizer(QuantSpec(num_bits=8))
    quantizer.set_bounds(signed=False)
    quantizer.set_range(torch.zeros(1), torch.ones(1))
    seen = TensorSurvey(quantizer)
    seen.add(torch.rand(1000))
    grid = candidate_grids(quantizer, seen, candidates=[4])[4]
    assert (grid.quant_min, grid.quant_max) == (0, 15)


def test_candidates_are_checked():
    assert check_candidates((8, 4, 8)) == (4, 8)
    with pytest.raises(ValueError, match='must be 2 to 16'):
        check_candidates((1, 8))
    with pytest.raises(ValueError, match='empty'):
        check_candidates(())
