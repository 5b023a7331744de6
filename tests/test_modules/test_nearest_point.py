"""Which point stands for a product at a place that calibration missed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch import nn

from taskptq.modules.call_sites import Site
from taskptq.modules.nearest_point import nearest_point, say_borrowed
from taskptq.modules.products import Point

POINTS = [
    Point('matmul_0', 'forward+1.0>inner+2.0>code+3.0 matmul', ()),
    Point('matmul_1', 'forward+9.0>inner+5.0>code+3.0 matmul', ()),
    Point('conv2d_2', 'forward+1.0>code+3.0 conv2d 8', ('input', 'weight')),
]


@pytest.mark.parametrize(
    ('place', 'name'),
    [
        ('other+1.0>inner+5.0>code+3.0 matmul', 'matmul_1'),
        ('other+1.0>code+3.0 matmul', 'matmul_0'),
        ('code+3.0 matmul', 'matmul_0'),
        ('code+3.0 conv2d 8', 'conv2d_2'),
        ('code+3.0 conv2d 4', 'conv2d_2'),
        ('forward+1.0>code+4.0 linear', 'conv2d_2'),
    ],
)
def test_same_line_then_same_weight(place: str, name: str) -> None:
    found = nearest_point(POINTS, place=place)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    'place', ['forward+1.0>code+4.0 matmul', 'code+3.0 einsum']
)
def test_activations_in_a_line_of_their_own_have_none(place: str) -> None:
    assert nearest_point(POINTS[:2], place=place) is None
    assert nearest_point([], place=place) is None


@pytest.mark.parametrize('training', [False, True])
def test_log(caplog: Any, training: bool) -> None:
    module = nn.Bilinear(1, 1, 1).train(training)
    with caplog.at_level(logging.INFO):
        say_borrowed(Site(module, 'code', ''), place='there', of='here')
    assert ("Bilinear.code multiplies at 'there'" in caplog.text) != training
