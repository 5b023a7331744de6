"""Settings of views."""

import pytest

pytest.importorskip('mmdet')

import torch

from taskptq.core.settings import SettingError
from taskptq.methods.qvit import GramLoss
from taskptq.qat.distillation import DistillationConfig, ViewConfig
from taskptq.qat.distillation.logits import class_logits
from taskptq.qat.distillation.proposals import DiscrepancyRegion


def test_names_are_spelled_out():
    view = ViewConfig.from_dict(
        dict(
            taps='neck',
            loss='gaussian_likelihood',
            regions=dict(type='discrepancy', share=0.2),
        )
    )
    assert view.taps == ('neck',)
    region = view.build_region()
    assert isinstance(region, DiscrepancyRegion)
    assert region.share == 0.2
    assert view.to_dict() == dict(
        taps=['neck'],
        loss={'type': 'GaussianLikelihoodLoss'},
        weight=1.0,
        regions={'type': 'discrepancy', 'share': 0.2},
        weights={'type': 'uniform'},
        within=None,
    )
    assert ViewConfig.from_dict(view.to_dict()) == view


def test_losses_have_arguments():
    view = ViewConfig(taps='query', loss=dict(type='gram', max_tokens=8))
    loss = view.build_loss()
    assert isinstance(loss, GramLoss)
    assert loss.max_tokens == 8


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'tap': 'neck'}, "unknown key 'tap'"),
        ({'taps': None}, 'taps'),
        ({'weight': -1}, 'weight=-1'),
        ({'loss': 'grams'}, 'grams'),
        ({'loss': 'mse'}, 'not features'),
        ({'loss': dict(type='gram', max_tokens=0)}, 'max_tokens=0'),
        ({'regions': 'box'}, "regions='box'"),
        ({'regions': dict(type='discrepancy', gamma=1)}, 'gamma'),
        ({'regions': dict(type='discrepancy', share=3)}, 'share=3'),
        ({'weights': 'heavy'}, "weights='heavy'"),
        ({'within': 're:('}, 'within'),
        ({'loss': 'gram', 'regions': 'annotations'}, 'compares tokens'),
        ({'loss': 'ranking', 'weights': 'entropy'}, 'compares attention'),
    ],
)
def test_impossible_settings(changes, words):
    settings = {'taps': 'neck', 'loss': 'squared_feature', **changes}
    with pytest.raises(SettingError, match=words):
        DistillationConfig.from_dict({'views': [settings]})


@pytest.mark.parametrize(
    ('views', 'words'),
    [
        ('gram', 'give a list'),
        ([7], r'views\[0\]=7'),
        ([dict(taps='neck')], "lacks the key 'loss'"),
    ],
)
def test_views_are_a_list_of_dicts(views, words):
    with pytest.raises(SettingError, match=words):
        DistillationConfig.from_dict({'views': views})


def test_with_views_queries_are_compared_on_demand_only():
    views = [dict(taps='neck', loss='squared_feature')]
    alone = DistillationConfig.from_dict({'views': views})
    assert not alone.compares_queries
    assert alone.weight == 0
    both = DistillationConfig.from_dict({'views': views, 'weight': 2.5})
    assert both.compares_queries
    assert 'views' not in DistillationConfig().to_dict()
    again = DistillationConfig.from_dict(both.to_dict())
    assert again == both


def test_logits_of_a_head_by_its_kinds():
    class Lanes:
        head_kinds = {'cls': 'confidence', '*': 'regression'}  # noqa: RUF012

    one, two = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert class_logits(one, adapter=Lanes()) is one
    found = class_logits({'cls': one, 'xy': two}, adapter=Lanes())
    assert list(found) == ['cls']
    assert class_logits(([one], [two]), adapter=Lanes()) == [one]
