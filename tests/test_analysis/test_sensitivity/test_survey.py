import pytest
import torch
from wild_net import switches

from taskptq.analysis.sensitivity.survey import (
    TensorSurvey,
    survey,
    survey_weights,
)
from taskptq.core import AffineQuantizer, QuantSpec


@pytest.fixture
def quantizer():
    made = AffineQuantizer(QuantSpec(num_bits=4))
    made.set_bounds(signed=False)
    made.set_range(torch.tensor([0.0]), torch.tensor([15.0]))
    return made


def test_sums_and_codes(quantizer):
    seen = TensorSurvey(quantizer)
    seen.add(torch.tensor([[0.0, 1.0], [2.25, 3.0]]))
    seen.add(torch.tensor([[7.0, 7.0]]))
    assert seen.count == 6
    assert (float(seen.low), float(seen.high)) == (0, 7)
    signals = seen.signals()
    assert signals.codes_used == 5 / 16  # 0, 1, 2, 3, 7
    squares = 1 + 2.25**2 + 9 + 2 * 49
    assert signals.sqnr_db == pytest.approx(
        10 * torch.tensor(squares / 0.25**2).log10().item(), abs=1e-4
    )


def test_samples_hold_both_ends(quantizer):
    seen = TensorSurvey(quantizer)
    x = torch.rand(100_000)
    x[77], x[99_991] = -5.0, 9.0
    seen.add(x)
    rows = seen.rows()
    assert rows.shape[1] < 5000
    assert (float(rows.min()), float(rows.max())) == (-5, 9)


def test_bits_of_full_scale_noise(quantizer):
    """A uniform tensor over the whole grid has nearly all its bits."""
    seen = TensorSurvey(quantizer)
    seen.add(torch.rand(4, 3, 32, 32) * 15)
    # Its power is that of a sine of the same peak, times 2 / 3 x 2.
    assert 3.7 < seen.signals().effective_bits < 4.8


def test_survey_of_a_model(wild, batches):
    before = switches(wild)
    found = survey(wild, batches, forward=lambda m, x: m(x))
    assert switches(wild) == before
    assert list(found) == [
        f'{name}.input_quantizer'
        for name in ('stem', 'depthwise', 'pointwise', 'spatial', 'head')
    ]
    assert found['stem.input_quantizer'].count == 2 * 4 * 3 * 64
    weights = survey_weights(wild)
    assert weights['stem.weight_quantizer'].sums.shape == (3, 8)
    assert len(weights) == 5
