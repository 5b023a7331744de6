"""Parts of DETRs by the names of their modules."""

from itertools import chain

import pytest

from taskptq.bench.detr_data import (
    GROUPS,
    STEPS,
    kept_without,
    partition,
    patterns_of,
    progressive_steps,
    query_points,
)
from taskptq.prepare.patterns import matches

NAMES = [
    'backbone.conv1',
    'encoder.layers.0.self_attn.attn',
    'encoder.layers.0.ffn.layers.1',
    'decoder.layers.1.self_attn.attn.out_proj',
    'decoder.layers.1.cross_attn.attn',
    'decoder.layers.1.ffn.layers.1',
    'decoder.ref_point_head.layers.0',
    'bbox_head.fc_cls',
]


def test_every_module_is_in_one_group():
    parts = partition(NAMES)
    assert sorted(chain(*parts.values())) == sorted(NAMES)
    assert 'neck' not in parts
    assert list(parts) == [group for group in GROUPS if group in parts]
    with pytest.raises(ValueError, match=r'roi_head\.fc belongs to no group'):
        partition([*NAMES, 'roi_head.fc'])


def test_what_stays_float_is_all_of_the_rest():
    parts = partition(NAMES)
    kept = kept_without(['backbone', 'decoder FFN'], parts)
    left = [
        name
        for name in NAMES
        if not any(matches(name, pattern) for pattern in kept)
    ]
    assert left == ['backbone.conv1', 'decoder.layers.1.ffn.layers.1']
    with pytest.raises(ValueError, match='no neck'):
        patterns_of(['neck'], parts)


def test_steps_add_up_to_the_whole():
    parts = partition(NAMES)
    steps = list(progressive_steps(parts))
    assert [title for title, _ in steps] == list(STEPS)
    sizes = [len(groups) for _, groups in steps]
    assert sizes == sorted(sizes)
    assert set(steps[-1][1]) == set(parts)
    fewer = {'encoder FFN': ['x'], 'decoder FFN': ['y']}
    assert len(list(progressive_steps(fewer))) == 2


def test_model_without_a_decoder_is_named():
    with pytest.raises(ValueError, match='object has no decoder'):
        query_points(object())
