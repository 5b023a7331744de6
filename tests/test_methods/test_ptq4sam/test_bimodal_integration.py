"""Sign folding by hand, decisions, and what stays as it is."""

import pytest
import torch
from torch import nn

from taskptq.methods.centering.centering import AttentionCentering
from taskptq.methods.ptq4sam.bimodal_integration import (
    BimodalIntegration,
    channel_signs,
    sign_edits,
)
from taskptq.methods.ptq4sam.key_shift import KeyShift
from taskptq.methods.rewriting.statistics import collect_statistics
from taskptq.methods.rewriting.views import attention_views

from ..conftest import decoder_batch, run, stats_of  # isort: skip

SCOPE = [
    'transformer.layers.0.cross_attn_token_to_image',
    'transformer.layers.1.cross_attn_token_to_image',
    'transformer.final_attn_token_to_image',
]


def test_signs():
    signs = channel_signs(torch.tensor([-0.1, 0.0, 3.0, -7.0]))
    assert signs.tolist() == [-1, 1, 1, -1]


def test_folding_of_two_channels():
    """k = (2 x + 5, 3 x - 5): the second channel is the negative one."""
    attention = nn.MultiheadAttention(2, 1)
    weight = torch.tensor(
        [
            [1.0, 2.0],
            [3.0, 4.0],  # q
            [2.0, 0.0],
            [3.0, 0.0],  # k
            [7.0, 8.0],
            [9.0, 10.0],
        ]
    )  # v
    bias = torch.tensor([1.0, 2.0, 5.0, -5.0, 3.0, 4.0])
    attention.in_proj_weight.data.copy_(weight)
    attention.in_proj_bias.data.copy_(bias)
    (view,), _ = attention_views(attention)
    for edit in sign_edits(view, torch.tensor([1.0, -1.0])):
        edit.rows.copy_(edit.after)
    assert attention.in_proj_weight.tolist() == [
        [1, 2],
        [-3, -4],
        [2, 0],
        [-3, 0],
        [7, 8],
        [9, 10],
    ]
    assert attention.in_proj_bias.tolist() == [1, -2, 5, 5, 3, 4]


def keys(model):
    views, _ = attention_views(model)
    views = [v for v in views if 'token_to_image' in v.name]
    found = collect_statistics(
        model, views, [decoder_batch()], forward=run, parts=['key']
    )
    return {name: parts['key'] for name, parts in found.items()}


def test_published_scope(mask_decoder):
    report = BimodalIntegration()(mask_decoder, stats_of(decoder_batch()))
    assert [
        e.name.removeprefix('mask_decoder.') for e in report.entries
    ] == SCOPE


def test_one_peak_changes_nothing(mask_decoder):
    stats = stats_of(decoder_batch())
    AttentionCentering(values=False)(mask_decoder, stats)
    before = {k: v.clone() for k, v in mask_decoder.state_dict().items()}
    report = BimodalIntegration()(mask_decoder, stats)
    for entry in report.entries:
        assert entry.status == 'unchanged'
        assert entry.reason == 'its keys have 1 peaks, not 2'
        assert len(entry.details['peaks']['positions']) == 1
    for key, value in mask_decoder.state_dict().items():
        assert torch.equal(value, before[key])


def test_shifted_keys_have_two_peaks_and_become_one_sided(mask_decoder):
    stats = stats_of(decoder_batch())
    KeyShift(c=6.0, spread=0.0)(mask_decoder, stats)
    before = keys(mask_decoder)
    report = BimodalIntegration()(mask_decoder, stats)
    after = keys(mask_decoder)
    assert report.count('applied') == 3
    for entry in report.entries:
        low, high = entry.details['peaks']['positions']
        assert low < -3 < 3 < high
        assert entry.details['num_negative'] == 8
        assert entry.details['num_positive'] == 8
        assert before[entry.name].peaks().bimodal
        assert not after[entry.name].peaks().bimodal
        # Said and measured; most of the negative half is gone.
        measured = [
            float(after[entry.name].min_val.min()),
            float(after[entry.name].max_val.max()),
        ]
        assert entry.details['range_after'] == pytest.approx(measured)
        assert (after[entry.name].mean > 0).all()


def test_centering_after_the_shift_leaves_nothing_to_integrate(mask_decoder):
    stats = stats_of(decoder_batch())
    natural = keys(mask_decoder)
    KeyShift(c=6.0, spread=0.2)(mask_decoder, stats)
    AttentionCentering(values=False)(mask_decoder, stats)
    report = BimodalIntegration()(mask_decoder, stats)
    assert report.count('unchanged') == 3
    for name, statistics in keys(mask_decoder).items():
        torch.testing.assert_close(
            statistics.mean,
            torch.zeros(16, dtype=torch.float64),
            atol=1e-5,
            rtol=0,
        )
        width = natural[name].max_val - natural[name].min_val
        torch.testing.assert_close(
            statistics.max_val - statistics.min_val, width
        )


def test_relative_positions_are_not_corrupted(image_encoder):
    stats = stats_of((torch.randn(2, 3, 40, 40),))
    KeyShift(c=8.0, patterns=None)(image_encoder, stats)
    report = BimodalIntegration(patterns=None)(image_encoder, stats)
    assert len(report.entries) == 3
    for entry in report.entries:
        assert entry.status == 'skipped'
        assert 'relative positions' in entry.reason
        assert entry.details['peaks']['bimodal']


def test_flipping_under_relative_positions_would_be_caught(image_encoder):
    """The reason above is a real one."""
    from taskptq.methods.rewriting.verified_rewrite import (
        Proposal,
        RewriteEntry,
        apply_proposals,
    )

    views, _ = attention_views(image_encoder)
    signs = torch.where(torch.arange(24) % 3 == 0, -1.0, 1.0)
    entry = RewriteEntry(name='x', part='query and key', status='skipped')
    proposal = Proposal(
        view=views[0], entry=entry, edits=sign_edits(views[0], signs)
    )
    apply_proposals(
        image_encoder, [proposal], stats_of((torch.randn(1, 3, 40, 40),))
    )
    assert entry.status == 'undone'


def test_unknown_pattern(mask_decoder):
    with pytest.raises(ValueError, match=r"patterns: pattern '\*image_token"):
        BimodalIntegration(patterns=['*image_token'])(
            mask_decoder, stats_of(decoder_batch())
        )


def test_no_data(mask_decoder):
    with pytest.raises(ValueError, match='set is empty'):
        BimodalIntegration()(mask_decoder, stats_of())
