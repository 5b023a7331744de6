"""Differences of nested outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from taskptq.prepare.difference import difference

X = torch.tensor([1.0, -2.0, 4.0])
NAN, INF = torch.nan, torch.inf


@dataclass
class Box:
    """A host's own result type."""

    x: Tensor
    label: int


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


CASES: dict[str, tuple[Any, Any, float]] = {
    'equal': (X, X.clone(), 0.0),
    'relative to the largest': (X + 0.04, X, 0.01),
    'largest of several': (
        [X, (X + 0.4, {'a': X + 0.04})],
        [X, (X, {'a': X})],
        0.1,
    ),
    'dataclass': (Box(X + 0.04, 1), Box(X, 1), 0.01),
    'dataclass number': (Box(X, 1), Box(X, 2), math.inf),
    'shape': (X[:2], X, math.inf),
    'broadcastable': (X[None], X, math.inf),
    'length': ([X], [X, X], math.inf),
    'None': ((X, None), (X, None), 0.0),
    'None and tensor': ((X, None), (X, X), math.inf),
    'empty': (torch.zeros(0, 4), torch.zeros(0, 4), 0.0),
    'empty of another shape': (torch.zeros(0, 4), torch.zeros(0, 5), math.inf),
    'nothing': ([], [], 0.0),
    'integers': (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
    'other integers': (torch.tensor([1, 2]), torch.tensor([1, 3]), math.inf),
    'booleans': (torch.tensor([True]), torch.tensor([False]), math.inf),
    'NaN of the float model': (t(1, 0), t(1, NAN), 0.0),
    'own NaN': (t(1, NAN), t(1, 2), math.inf),
    'same infinity': (t(1, INF), t(1, INF), 0.0),
    'other infinity': (t(1, -INF), t(1, INF), math.inf),
    'own infinity': (t(1, INF), t(1, 2), math.inf),
    'infinity lost': (t(1, 2), t(1, INF), math.inf),
    'all NaN': (t(1), t(NAN), 0.0),
    'all zero': (t(0, 0), t(0, 0), 0.0),
    'zero expected': (t(0, 1e-9), t(0, 0), math.inf),
}


@pytest.mark.parametrize('name', CASES)
def test_difference(name: str) -> None:
    found, expected, gap = CASES[name]
    assert difference(found, expected) == pytest.approx(gap, rel=1e-4)
