"""Semantic Guided Focus: weights, variances and errors by hand."""

import math

import pytest
import torch

from taskptq.methods.selective_focus.semantic_focus import (
    SemanticFocus,
    focused_error,
)


class MapsAdapter:
    """Confidence of a heat map, for the map itself and the offsets."""

    head_kinds = {'hm': 'confidence', '*': 'regression'}  # noqa: RUF012

    def foreground_proxy(self, heads):
        weight = heads['hm'].sigmoid()
        return {'hm': weight, 'offset': weight}


def test_focused_error_by_hand():
    target = torch.zeros(1, 2, 1, 2)
    quant = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    weight = torch.tensor([[[[1.0, 0.5]]]])
    # (1 + 9) * 1 + (4 + 16) * 0.5 over 2 channels * 1.5
    found = focused_error(quant, target, weight=weight)
    assert float(found) == pytest.approx(20 / 3)
    # Less foreground than one element is not blown up.
    found = focused_error(quant, target, weight=weight / 10)
    assert float(found) == pytest.approx(2.0)
    assert float(focused_error(quant, target, weight=torch.ones(()))) == 7.5


def hand_heads():
    logits = torch.tensor([math.log(4), -math.log(4)]).view(1, 1, 1, 2)
    return {
        'hm': logits,
        'offset': torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]]),
    }


def test_weights_by_kind_of_head():
    adapter, heads = MapsAdapter(), hand_heads()
    soft = SemanticFocus(eps_bg={'confidence': 0.1, 'regression': 0.0})
    found = soft.weights(heads, adapter=adapter)
    assert found['hm'].flatten().tolist() == pytest.approx([0.9, 0.3])
    assert found['offset'].flatten().tolist() == pytest.approx([0.8, 0.2])
    hard = SemanticFocus(focus='hard', threshold=0.3)
    found = hard.weights(heads, adapter=adapter)
    assert found['hm'].flatten().tolist() == pytest.approx([1.05, 0.05])
    assert found['offset'].flatten().tolist() == [1.0, 0.0]
    found = SemanticFocus(focus=None).weights(heads, adapter=adapter)
    assert {name: float(w) for name, w in found.items()} == {
        'hm': 1.0,
        'offset': 1.0,
    }
    read = SemanticFocus(focus_kinds=['regression'])
    found = read.weights(heads, adapter=adapter)
    assert float(found['hm']) == 1.0
    assert found['offset'].flatten().tolist() == pytest.approx([0.8, 0.2])
    own = SemanticFocus(head_kinds={'off*': 'confidence'})
    assert own.kind_of('offset', adapter=adapter) == 'confidence'
    assert own.kind_of('reg') == 'confidence'
    assert SemanticFocus().kind_of('offset', adapter=adapter) == 'regression'


class DecodedAdapter(MapsAdapter):
    """Proximity that the metainfo of the image states."""

    def decoded_proxy(self, heads, metas):
        near = torch.stack([meta['near'] for meta in metas])
        return {'hm': near, 'offset': near}


def test_weights_by_decoded_predictions():
    heads = hand_heads()
    metas = [{'near': torch.tensor([[[0.2, 1.0]]])}]
    focus = SemanticFocus(focus='decoded')
    found = focus.weights(heads, adapter=DecodedAdapter(), metas=metas)
    assert found['hm'].flatten().tolist() == pytest.approx([0.25, 1.05])
    assert found['offset'].flatten().tolist() == pytest.approx([0.2, 1.0])
    moments = focus.variances([heads], adapter=DecodedAdapter(), metas=[metas])
    # Under the weights 1/6 and 5/6, channels (1, 3) and (0, 8).
    mean, square = (2.667 + 6.667) / 2, (7.667 + 53.33) / 2
    assert float(moments['offset']) == pytest.approx(
        square - mean**2, rel=1e-3
    )
    with pytest.raises(ValueError, match='MapsAdapter has no decoded_proxy'):
        focus.weights(heads, adapter=MapsAdapter(), metas=metas)


def test_variances_by_hand():
    adapter, heads = MapsAdapter(), hand_heads()
    focus = SemanticFocus(normalize='channel', var_eps=0.0)
    found = focus.variances([heads], adapter=adapter)['offset'].flatten()
    # weights 0.8, 0.2: channel 0 has mean 1.4, channel 1 mean 1.6
    assert found.tolist() == pytest.approx([0.64, 10.24])
    focus = SemanticFocus(normalize='head', var_eps=0.5)
    found = focus.variances([heads, heads], adapter=adapter)['offset']
    # mean 1.5; 0.4 (0.25 + 2.25) + 0.1 (2.25 + 42.25)
    assert float(found) == pytest.approx(5.45 + 0.5)
    found = SemanticFocus(normalize=None).variances([heads], adapter=adapter)
    assert float(found['offset']) == 1
