"""Every rewrite keeps every model's output, and says so truly."""

import copy
import json
import logging

import pytest
import torch
from torch import nn

from taskptq.methods.centering.centering import AttentionCentering
from taskptq.methods.ptq4sam.bimodal_integration import BimodalIntegration
from taskptq.methods.ptq4sam.key_shift import KeyShift
from taskptq.methods.rewriting.verified_rewrite import (
    Proposal,
    RewriteEntry,
    RowEdit,
    apply_proposals,
    relative_error,
)
from taskptq.methods.rewriting.views import attention_views
from taskptq.registry import REWRITES

from ..conftest import (  # isort: skip
    Crossing,
    crossing_batch,
    decoder_batch,
    randomized,
    stats_of,
    window_batch,
    window_model,
)

LIMIT = 1e-5


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [x for x in output if x is not None]


def check_kept(model, rewrite, batches, *, unseen, run=None):
    """Rewrite; the outputs on unseen data stay, the parameters do not."""
    run = run or (lambda m, batch: m(*batch))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = tensors(run(model, unseen))
        report = rewrite(model, stats_of(*batches, forward=run))
        found = tensors(run(model, unseen))
    for one, two in zip(expected, found, strict=True):
        assert relative_error(one, two) <= LIMIT
    assert report.max_relative_error <= LIMIT
    assert report.count('undone') == 0
    changed = {
        k
        for k, v in model.state_dict().items()
        if not torch.equal(v, before[k])
    }
    assert bool(changed) == (report.count('applied') > 0)
    json.dumps(report.to_dict())
    return report


REWRITERS = {
    'centering': lambda: AttentionCentering(),
    'centering by mid-range': lambda: AttentionCentering(
        key_center='midrange', value_center='midrange'
    ),
    'shift': lambda: KeyShift(patterns=None),
}
every_rewrite = pytest.mark.parametrize('name', REWRITERS)


@every_rewrite
def test_mask_decoder(name, mask_decoder):
    report = check_kept(
        mask_decoder,
        REWRITERS[name](),
        [decoder_batch(seed) for seed in range(2)],
        unseen=decoder_batch(5),
    )
    parts = 2 if 'centering' in name else 1
    assert report.count('applied') == parts * 7


@every_rewrite
def test_image_encoder(name, image_encoder):
    """Relative positions, padded windows and a global block."""
    report = check_kept(
        image_encoder,
        REWRITERS[name](),
        [(torch.randn(2, 3, 40, 40),)],
        unseen=(torch.randn(1, 3, 40, 40),),
    )
    parts = 2 if 'centering' in name else 1
    assert report.count('applied') == parts * 3


@every_rewrite
@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('kdim', [16, 12])
def test_multihead_attention(name, batch_first, kdim):
    model = randomized(Crossing(batch_first=batch_first, kdim=kdim, vdim=kdim))
    assert (model.attn.in_proj_weight is None) == (kdim == 12)
    report = check_kept(
        model,
        REWRITERS[name](),
        [crossing_batch(kdim, 1)],
        unseen=crossing_batch(kdim, 2),
    )
    assert {entry.status for entry in report.entries} == {'applied'}


@every_rewrite
def test_transformer_layers(name):
    from taskptq.testing import tiny_batches, tiny_model

    model = randomized(tiny_model('transformer'))
    report = check_kept(
        model,
        REWRITERS[name](),
        tiny_batches('transformer'),
        unseen=torch.randn(2, 3, 16, 16),
        run=lambda m, x: m(x),
    )
    assert {entry.status for entry in report.entries} == {'applied'}


@every_rewrite
@pytest.mark.parametrize('kind', ['tiny', 'mmdet', 'mmseg'])
def test_window_attention(name, kind):
    report = check_kept(
        window_model(kind),
        REWRITERS[name](),
        [window_batch(1)],
        unseen=window_batch(2),
        run=lambda m, batch: m['attn'](*batch),
    )
    assert {entry.status for entry in report.entries} == {'applied'}


@pytest.mark.parametrize('kind', ['fused', 'unfused', 'window'])
def test_flipped_channels(kind):
    """Signs on every layout, after a shift that makes them worthwhile."""
    run = None
    if kind == 'window':
        model, batches = window_model('tiny'), map(window_batch, range(2))
        run = lambda m, batch: m['attn'](*batch)  # noqa: E731
    else:
        kdim = 16 if kind == 'fused' else 12
        model = randomized(Crossing(kdim=kdim, vdim=kdim))
        batches = (crossing_batch(kdim, seed) for seed in range(2))
    one, two = batches
    check_kept(
        model, KeyShift(c=6.0, patterns=None), [one], unseen=two, run=run
    )
    report = check_kept(
        model, BimodalIntegration(patterns=None), [one], unseen=two, run=run
    )
    assert report.count('applied') == 1


@pytest.mark.parametrize(
    ('options', 'part', 'reason'),
    [
        (dict(add_bias_kv=True), 'key', 'learned or zero token'),
        (dict(add_zero_attn=True), 'value', 'learned or zero token'),
        (dict(bias=False), 'key', 'key projection has no bias'),
        (dict(bias=False), 'value', 'value projection has no bias'),
    ],
)
def test_what_cannot_be_centered_is_skipped(options, part, reason):
    model = Crossing(**options).eval()
    report = check_kept(
        model,
        AttentionCentering(),
        [crossing_batch()],
        unseen=crossing_batch(seed=3),
    )
    (entry,) = (e for e in report.entries if e.part == part)
    assert (entry.name, entry.status) == ('attn', 'skipped')
    assert reason in entry.reason


def test_values_need_the_output_bias():
    model = window_model('tiny')
    model['attn'].proj = nn.Linear(16, 16, bias=False)
    report = check_kept(
        model,
        AttentionCentering(),
        [window_batch(1)],
        unseen=window_batch(2),
        run=lambda m, batch: m['attn'](*batch),
    )
    assert [e.status for e in report.entries] == ['applied', 'skipped']
    assert 'output projection has no bias' in report.entries[1].reason


def test_attention_that_never_ran_is_left_alone():
    model = nn.ModuleList([Crossing(), Crossing()]).eval()
    before = copy.deepcopy(model[1].state_dict())

    def run(model, batch):
        return model[0](*batch)

    stats = stats_of(crossing_batch(), forward=run)
    for rewrite in (
        AttentionCentering(),
        KeyShift(patterns=None),
        BimodalIntegration(patterns=None),
    ):
        report = rewrite(model, stats)
        second = [e for e in report.entries if e.name == '1.attn']
        assert second
        for entry in second:
            assert entry.status in ('skipped', 'undone')
            assert 'never ran' in entry.reason
    for key, value in model[1].state_dict().items():
        assert torch.equal(value, before[key])


def proposal(view, rows, after):
    entry = RewriteEntry(name=view.name, part='key', status='skipped')
    return Proposal(view=view, entry=entry, edits=[RowEdit.to(rows, after)])


def test_what_changes_the_output_is_undone(caplog):
    """One wrong and one exact edit of one attention: the exact one stays."""
    model = randomized(Crossing())
    (view,), _ = attention_views(model)
    before = model.attn.in_proj_bias.detach().clone()
    wrong = proposal(view, view.query.bias, view.query.bias + 0.1)
    exact = proposal(view, view.key.bias, view.key.bias + 0.1)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        apply_proposals(model, [wrong, exact], stats_of(crossing_batch()))
    assert wrong.entry.status == 'undone'
    assert wrong.entry.max_relative_error > 1e-3
    assert 'tolerance of 1e-05' in wrong.entry.reason
    assert 'attn' in caplog.text
    assert exact.entry.status == 'applied'
    assert exact.entry.max_relative_error <= LIMIT
    after = model.attn.in_proj_bias.detach()
    assert torch.equal(after[:16], before[:16])
    assert torch.equal(after[16:32], before[16:32] + 0.1)


def test_verification_uses_as_many_batches_as_asked():
    model = randomized(Crossing())
    seen = []

    def run(model, batch):
        seen.append(1)
        return model(*batch)

    stats = stats_of(*map(crossing_batch, [16] * 4), forward=run)
    KeyShift(patterns=None, verify_batches=3)(model, stats)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ('before', 'after', 'expected'),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([float('nan'), 2.0], [float('nan'), 2.0], 0.0),
        ([float('nan'), 2.0], [1.0, 2.0], float('inf')),
        ([0.0], [0.0], 0.0),
        ([0.0], [0.1], float('inf')),
    ],
)
def test_relative_error(before, after, expected):
    found = relative_error(torch.tensor(before), torch.tensor(after))
    assert found == expected


@pytest.mark.parametrize(
    'kind', [AttentionCentering, BimodalIntegration, KeyShift]
)
def test_registered(kind):
    assert REWRITES.get(kind.__name__) is kind
    assert isinstance(REWRITES.build(dict(type=kind.__name__)), kind)
