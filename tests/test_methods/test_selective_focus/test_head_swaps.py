"""Mixtures of float and quantized heads, decoded by a formula."""

import pytest
import torch

from taskptq.methods.selective_focus.head_swaps import HeadSwaps

FLOAT = [
    {
        'a': torch.tensor([1.0, 2.0]),
        'b': torch.tensor([3.0, 4.0]),
        'cells': torch.tensor([7, 9]),
    }
]
METAS = [[{}, {}]]


class Sum:
    """Decodes an image to a + 2 b, and counts how often."""

    def __init__(self):
        self.calls = 0

    def decode(self, heads, metas):
        self.calls += 1
        assert len(metas) == 2
        assert heads['cells'].tolist() == [7, 9]
        return (heads['a'] + 2 * heads['b']).tolist()


def distance(one, two, metas):
    return [abs(x - y) for x, y in zip(one, two, strict=True)]


def swaps(form, adapter=None):
    return HeadSwaps(
        FLOAT, METAS, adapter=adapter or Sum(), distance=distance, form=form
    )


def quant(a, b):
    return [{**FLOAT[0], 'a': FLOAT[0]['a'] + a, 'b': FLOAT[0]['b'] + b}]


def test_swap_in():
    found = swaps('swap_in').sensitivities(quant(0.5, -1.0))
    assert found == pytest.approx({'a': 0.5, 'b': 2.0})


def test_leave_one_out():
    # |0.5 - 2| = 1.5 in all; |-2| without a, |0.5| without b
    found = swaps('leave_one_out').sensitivities(quant(0.5, -1.0))
    assert found == pytest.approx({'a': 0.0, 'b': 1.0})
    found = swaps('leave_one_out').sensitivities(quant(0.5, 1.0))
    assert found == pytest.approx({'a': 0.5, 'b': 2.0})


def test_curves_at_parts_of_the_error():
    found = swaps('swap_in').curves(quant(0.5, -1.0), strengths=(0.5, 1, 2))
    assert found['a'] == pytest.approx([0.25, 0.5, 1.0])
    assert found['b'] == pytest.approx([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ('form', 'calls'),
    [('swap_in', 1 + 2 * 3), ('leave_one_out', 1 + 2 * 3 + 2)],
)
def test_decodings(form, calls):
    adapter = Sum()
    mixture = swaps(form, adapter)
    mixture.curves(quant(0.5, 1.0), strengths=(0.25, 0.5, 1))
    assert adapter.calls == calls


def test_unknown_form():
    with pytest.raises(ValueError, match="sensitivity='out'"):
        swaps('out')
