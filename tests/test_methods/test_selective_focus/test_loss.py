"""Selective Focus: its loss by hand, its selection, and on a tiny model."""

import json
import math

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.methods.selective_focus.loss import (
    NetworkUniform,
    SelectiveFocusLoss,
)
from taskptq.methods.selective_focus.semantic_focus import (
    SemanticFocus,
)
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import (
    MSEReconLoss,
    ReconContext,
    ReconstructionConfig,
    freeze,
    reconstruct,
)
from taskptq.reconstruction.losses import NetworkProbe
from taskptq.reconstruction.network import NetworkData

CELL = 8  # pixels of a cell of the tiny model's maps


class Maps(nn.Module):
    """Three heads: where the lane is in each row, how far off, and a spare.

    The image has a bright vertical bar; the heat map finds it.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.hm = nn.Conv2d(8, 1, 1)
        self.offset = nn.Conv2d(8, 2, 1)
        self.spare = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return {
            'hm': self.hm(x) + 0.2 * x.mean(1, keepdim=True) - 2,
            'offset': self.offset(x),
            'spare': 50 * self.spare(x),
        }


class MapsAdapter:
    """One lane for each image: in each row the best column and its offset."""

    head_kinds = {'hm': 'confidence', '*': 'regression'}  # noqa: RUF012

    def __init__(self):
        self.decodings = 0
        self.runs = 0

    def forward_heads(self, model, batch):
        self.runs += 1
        return model(batch)

    def foreground_proxy(self, heads):
        weight = heads['hm'].sigmoid()
        return {'hm': weight, 'offset': weight}

    def decode(self, heads, metas):
        self.decodings += 1
        best, columns = heads['hm'][:, 0].max(dim=2)
        shift = heads['offset'][:, 0].gather(2, columns[..., None])[..., 0]
        x = (columns + 5 * shift) * CELL
        y = torch.arange(x.shape[1]) * CELL
        return [
            [torch.stack([row, y.to(row)], dim=1)[score.sigmoid() > 0.05]]
            for row, score in zip(x, best, strict=True)
        ]


def bars(num_batches=3, batch_size=4, size=8):
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(num_batches):
        x = 0.3 * torch.randn(batch_size, 1, size, size, generator=generator)
        columns = torch.randint(size, (batch_size,), generator=generator)
        x[torch.arange(batch_size), 0, :, columns] += 3
        batches.append(x)
    return batches


def with_metas(batches):
    """Batches as a dataloader collates them."""
    return [
        {
            'inputs': x,
            'data_samples': [
                {'crop': (0, 0, CELL * x.shape[3], CELL * x.shape[2])}
            ]
            * len(x),
        }
        for x in batches
    ]


class CollatedAdapter(MapsAdapter):
    def forward_heads(self, model, batch):
        return super().forward_heads(model, batch['inputs'])


@pytest.fixture
def network():
    """Quantized model, its batches and adapter."""
    torch.manual_seed(3)
    model, batches = Maps().eval(), with_metas(bars())
    prepare(
        model,
        QConfig.from_dict(
            dict(
                weight=dict(num_bits=3, symmetric=False),
                activation=dict(type='LSQQuantizer', num_bits=3),
                edge_bits=None,
            )
        ),
    )
    calibrate(model, batches, forward=lambda m, b: m(b['inputs']))
    return model, batches, CollatedAdapter()


def context(step=0, adapter=None, unit=''):
    return ReconContext(unit=unit, step=step, num_steps=100, adapter=adapter)


def hand_heads():
    logits = torch.tensor([math.log(4), -math.log(4)]).view(1, 1, 1, 2)
    return {
        'hm': logits,
        'offset': torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]]),
    }


def test_loss_by_hand():
    adapter, heads = MapsAdapter(), hand_heads()
    loss = SelectiveFocusLoss(selection=None, var_eps=0.0)
    loss.begin(
        NetworkProbe(
            heads_float=[heads],
            metas=[[{}]],
            run=lambda number: heads,
            adapter=adapter,
        )
    )
    quant = {
        'hm': heads['hm'] + 1,
        'offset': heads['offset'] + torch.tensor([1.0, 0.0]).view(1, 1, 1, 2),
    }
    found = loss(quant, heads, context(adapter=adapter))
    # hm: error 1 everywhere, weights 0.85 and 0.25 of +-log 4
    p = 0.85 / 1.1
    variance = math.log(4) ** 2 * (1 - (2 * p - 1) ** 2)
    # offset: error 1 where the weight is 0.8 of 1; variance 5.45
    expected = 0.5 * (1 / variance + 0.8 / 5.45)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_uniform_is_the_mean_of_relative_errors():
    torch.manual_seed(0)
    heads = {'hm': torch.randn(2, 1, 4, 4), 'offset': torch.randn(2, 2, 4, 4)}
    quant = {k: v + 0.1 * torch.randn_like(v) for k, v in heads.items()}
    loss = NetworkUniform(var_eps=0.0)
    adapter = MapsAdapter()
    loss.begin(
        NetworkProbe(
            heads_float=[heads],
            metas=[[{}] * 2],
            run=lambda number: quant,
            adapter=adapter,
        )
    )
    # Where something was computed is no head.
    heads['cells'] = quant['cells'] = torch.tensor([[3], [4]])
    expected = (
        sum(
            (quant[k] - v).square().mean() / v.var(correction=0)
            for k, v in heads.items()
            if k != 'cells'
        )
        / 2
    )
    found = loss(quant, heads, context(adapter=adapter))
    torch.testing.assert_close(found, expected)
    assert adapter.decodings == 0


def test_sensitivities_of_the_start(network):
    model, batches, adapter = network
    loss = SelectiveFocusLoss(num_images=6)
    loss.begin(NetworkData(model, batches, adapter).probe())
    (entry,) = loss.report()['heads']
    assert entry['step'] == 0
    assert entry['exact']
    assert entry['sensitivity']['spare'] == 0  # no decoder reads it
    assert entry['sensitivity']['hm'] > 0
    assert entry['sensitivity']['offset'] > 0
    assert loss.weights['spare'] == 0
    assert sum(loss.weights.values()) == pytest.approx(1)
    # 2 batches hold 6 images: float, and 3 heads at 4 strengths
    assert adapter.decodings == 2 * (1 + 3 * 4)
    assert adapter.runs == len(batches) + 2


def test_nothing_is_decoded_between_refreshes(network):
    model, batches, adapter = network
    loss = SelectiveFocusLoss(
        num_images=4, update_interval=2, refresh_interval=6
    )
    data = NetworkData(model, batches, adapter)
    loss.begin(data.probe())
    per_step, weights = [], []
    with torch.no_grad():
        quant = data.run_quantized(1)
        for step in range(13):
            before = adapter.decodings, adapter.runs
            error = 0.5**step
            mixed = {
                k: torch.lerp(v, quant[k], error)
                for k, v in data.targets[1].items()
            }
            loss(mixed, data.targets[1], context(step, adapter))
            per_step.append(
                (adapter.decodings - before[0], adapter.runs - before[1])
            )
            weights.append(loss.weights)
    assert per_step == [(3, 1) if s in (6, 12) else (0, 0) for s in range(13)]
    noted = [(e['step'], e['exact']) for e in loss.report()['heads']]
    assert noted == [
        (0, True),
        (2, False),
        (4, False),
        (6, True),
        (8, False),
        (10, False),
        (12, True),
    ]
    first, second = (e['sensitivity'] for e in loss.report()['heads'][:2])
    for name in ('hm', 'offset'):
        # Read off the curve: a smaller error has a smaller sensitivity, of
        # which the average takes a tenth.
        assert 0.9 * first[name] <= second[name] < first[name]
    assert weights[0] == weights[1]


class NearAdapter(CollatedAdapter):
    """Weighs the cells of one column, which a batch's first image names."""

    def decoded_proxy(self, heads, metas):
        self.decodings += 1
        near = torch.zeros_like(heads['hm'])
        near[..., metas[0]['column']] = 1
        return {'hm': near, 'offset': near}


def test_decoded_focus_weighs_each_batch_by_its_own_lanes(network):
    model, batches, _ = network
    for number, batch in enumerate(batches):
        meta = {**batch['data_samples'][0], 'column': number}
        batch['data_samples'] = [meta] * 4
    adapter = NearAdapter()
    loss = SelectiveFocusLoss(focus='decoded', selection=None, eps_bg=None)
    data = NetworkData(model, batches, adapter)
    loss.begin(data.probe())
    decoded = adapter.decodings

    def value(number, column, target=None):
        target = data.targets[number] if target is None else target
        moved = {k: v.clone() for k, v in target.items()}
        moved['offset'][..., column] += 1
        ids = tuple(range(4 * number, 4 * number + 4))
        here = ReconContext(
            unit='', step=0, num_steps=1, adapter=adapter, image_ids=ids
        )
        return float(loss(moved, target, here))

    for number in range(3):
        assert value(number, number) > 0
        assert value(number, (number + 1) % 3) == 0
    # Once for each batch, and again for outputs of other images.
    assert adapter.decodings == decoded + 3
    assert value(1, 1, dict(data.targets[1])) > 0
    assert adapter.decodings == decoded + 4


def test_no_refresh_if_none_is_wanted(network):
    model, batches, adapter = network
    loss = SelectiveFocusLoss(update_interval=5, refresh_interval=0)
    data = NetworkData(model, batches, adapter)
    loss.begin(data.probe())
    before = adapter.decodings
    for step in range(0, 31, 5):
        loss(data.targets[0], data.targets[0], context(step, adapter))
    assert adapter.decodings == before
    assert len(loss.report()['heads']) == 7


@torch.no_grad()
def head_errors(model, adapter, batches, reference):
    """Focused error of each head of a frozen model."""
    focus = SemanticFocus()
    targets = [adapter.forward_heads(reference, b) for b in batches]
    variances = focus.variances(targets, adapter=adapter)
    sums = {}
    for batch, target in zip(batches, targets, strict=True):
        found = focus.errors(
            adapter.forward_heads(model, batch),
            target,
            variances=variances,
            adapter=adapter,
        )
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@pytest.mark.parametrize('sensitivity', ['swap_in', 'leave_one_out'])
def test_reconstruction_reduces_the_focused_error(network, sensitivity):
    import copy

    model, batches, adapter = network
    torch.manual_seed(3)
    reference = Maps().eval()
    plain = copy.deepcopy(model)
    freeze(plain)
    loss = SelectiveFocusLoss(
        sensitivity=sensitivity,
        update_interval=10,
        refresh_interval=50,
        num_images=12,
    )
    config = ReconstructionConfig(
        scope='network',
        steps=150,
        weight_lr=0.1,
        scale_lr=0.01,
        drop_prob=0.2,
        rounding_weight=100.0,
        warmup=0.0,
        skip_below=0.0,
        keep_better=True,
    )
    report = reconstruct(
        model,
        batches,
        config,
        forward=lambda m, b: m(b['inputs']),
        loss=loss,
        adapter=adapter,
        progress=False,
    )
    freeze(model)
    before = head_errors(plain, adapter, batches, reference)
    after = head_errors(model, adapter, batches, reference)
    heads = report.loss['heads']
    used = heads[-1]['weight']
    objective = [
        sum(used[name] * found[name] for name in used)
        for found in (before, after)
    ]
    assert objective[1] < 0.8 * objective[0], (before, after, used)
    # Weights change while it trains; both are measured with the last ones.
    unit = report.units[0]
    assert [unit.set_loss_start, unit.set_loss_end] == pytest.approx(
        [value / len(batches) for value in objective]
    )
    assert report.units[0].loss_end < report.units[0].loss_start
    assert [e['step'] for e in heads if e['exact']] == [0, 50, 100]
    assert all(e['weight']['spare'] == 0 for e in heads)
    assert used['hm'] > 0
    if sensitivity == 'swap_in':
        assert used['offset'] > 0
    assert json.loads(json.dumps(report.to_dict()))['loss'] == report.loss


def test_a_block_has_no_heads():
    loss = SelectiveFocusLoss()
    with pytest.raises(ValueError, match=r"'layer1'.*scope='network'"):
        loss(torch.ones(2), torch.ones(2), context(unit='layer1'))


@pytest.mark.parametrize(
    'settings',
    [
        {'focus': 'sharp'},
        {'focus_threshold': 1.0},
        {'normalize': 'image'},
        {'eps_bg': {'confidence': -1.0}},
        {'eps_bg': {'seg': 0.1}},
        {'head_kinds': {'a*': 'seg'}},
        {'selection': 'best'},
        {'rho': 2.0},
        {'focus_kinds': ['seg']},
        {'floor': -0.1},
        {'top_k': 0},
        {'sensitivity': 'both'},
        {'ema': 1.0},
        {'num_images': 0},
        {'update_interval': 0},
        {'refresh_interval': -1},
        {'strengths': (0.5,)},
        {'strengths': (0.5, 0.5, 1.0)},
        {'distance': 'far'},
    ],
)
def test_settings_that_cannot_be(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name.split('_threshold')[0]):
        SelectiveFocusLoss(**settings)


def test_built_from_configs():
    pytest.importorskip('mmengine')
    from taskptq.engine.builder import build_loss

    loss = build_loss(
        dict(
            type='SelectiveFocusLoss',
            focus='hard',
            selection='topk',
            top_k=1,
            distance=dict(type='lane_distortion', num_rows=9),
        )
    )
    assert loss.selection.top_k == 1
    assert loss.focus.focus == 'hard'
    assert isinstance(build_loss(dict(type='NetworkUniform')), NetworkUniform)
    assert build_loss(None) is None
    assert not isinstance(loss, MSEReconLoss)


def test_recipes_differ_in_their_descriptions():
    from taskptq.reconstruction.resume import _description

    losses = [
        SelectiveFocusLoss(),
        SelectiveFocusLoss(rho=0.1),
        SelectiveFocusLoss(eps_bg={'regression': 0.1}),
        SelectiveFocusLoss(distance=dict(type='lane_distortion')),
        NetworkUniform(),
    ]
    descriptions = [_description(loss) for loss in losses]
    assert len(set(descriptions)) == len(losses)
    assert _description(SelectiveFocusLoss()) == descriptions[0]
