"""Curves of sensitivity over error."""

import pytest
import torch

from taskptq.methods.selective_focus.head_sensitivity import (
    MonotoneCurve,
    isotonic,
)


def test_isotonic():
    assert isotonic([1, 3, 2, 2, 5]) == pytest.approx(
        [1, 7 / 3, 7 / 3, 7 / 3, 5]
    )
    assert isotonic([3, 2, 1]) == pytest.approx([2, 2, 2])
    assert isotonic([]) == []


def test_curve_interpolates_and_rises():
    curve = MonotoneCurve([(1.0, 2.0), (4.0, 8.0)])
    assert [curve(e) for e in (0, 0.5, 1, 2, 4, 99)] == pytest.approx(
        [0, 1, 2, 4, 8, 8]
    )
    curve.add(2.0, 1.0)  # contradicts the point at 1
    assert curve(2.0) == pytest.approx(1.5)
    curve.add(0.0, 7.0)
    assert curve(0.0) == 0
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    curve = MonotoneCurve([(i + 1, v) for i, v in enumerate(values.tolist())])
    read = [curve(e / 4) for e in range(200)]
    assert read == sorted(read)
    assert read[-1] > read[0]
