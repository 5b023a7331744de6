"""Layers of a measurement: no detector, and perhaps one block alone."""

import pytest
from torch import nn

from sam_detector.scale_config import of_blocks, without_detector
from taskptq.prepare.patterns import matches


def test_the_detectors_patterns_are_left_out():
    kept = without_detector(
        {'weight': 1, 'keep_float': ['detector*', 'sam.mask_decoder*']}
    )
    assert kept == {'weight': 1, 'keep_float': ['sam.mask_decoder*']}
    assert without_detector({})['keep_float'] == []


def test_of_blocks():
    model = nn.ModuleDict({'a': nn.ModuleList(nn.ReLU() for _ in range(3))})
    found = of_blocks({'keep_float': ['x'], 'b': 1}, ['a.1'], model=model)
    assert found['b'] == 1
    first, rest = found['keep_float']
    assert first == 'x'
    kept = ['a.0.attn', 'a.10', 'a.11.mlp', 'b.a.1']
    assert all(matches(name, rest) for name in kept)
    assert not any(matches(name, rest) for name in ['a.1', 'a.1.mlp.fc1'])
    with pytest.raises(ValueError, match=r'--block a.7: no such module'):
        of_blocks({'keep_float': []}, ['a.7'], model=model)
