"""What users read of a choice."""

import pytest

from taskptq.engine.mixed_precision_report import sentence_of

REPORT = dict(
    changes=[dict(layer='stem')],
    costs=dict(macs_above=0.0136),
    rounding='gptq',
    allowed=0.01,
    keep=0.99,
    verified=True,
    final_loss=0.004,
    named_loss=0.056,
)


@pytest.mark.parametrize(
    ('changed', 'expected'),
    [
        (
            {},
            'Mixed precision: 1 tensors have other bits than the recipe '
            'names, 1.36 % of multiply-accumulates run above them, weights '
            'are rounded by gptq; the output loss is 0.004 (0.056 before), '
            'within 0.01, the estimate for 99 % of the score',
        ),
        (
            dict(changes=[], rounding='nearest', verified=False),
            'Mixed precision: all tensors keep the bits of the recipe; the '
            'output loss is 0.004 (0.056 before), the best that the budget '
            'and the candidates allow, but above 0.01, the estimate for '
            '99 % of the score',
        ),
        (
            dict(changes=[], verified=False, final_loss=0.077),
            'Mixed precision: all tensors keep the bits of the recipe, '
            'weights are rounded by gptq; the output loss is 0.077 (0.056 '
            'before), which is worse, and above 0.01, the estimate for 99 % '
            'of the score: calibrate on more images, or name a method that '
            'chooses nothing, such as w8a8_mse',
        ),
    ],
)
def test_sentence(changed, expected):
    assert sentence_of({**REPORT, **changed}) == expected


def test_sentence_names_changed_predictions():
    shares = dict(final_disagreement=0.004, named_disagreement=0.0945)
    assert sentence_of({**REPORT, **shares}).endswith(
        'score; 0.4 % of the predictions changed (9.45 % before, 2 % '
        'allowed), which the output loss includes'
    )
