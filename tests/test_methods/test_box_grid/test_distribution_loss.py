"""KL of box distributions: by hand, its foreground, and its refusals."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.methods.box_grid.distribution_loss import (
    ForegroundKLLoss,
    divergence,
    group_of,
)
from taskptq.reconstruction.losses import NetworkProbe, ReconContext

POINTS = 5


class BoxAdapter:
    """Maps 'cls' (N, 1, H, W) and 'box' (N, 4 * POINTS, H, W)."""

    head_kinds = {'cls*': 'confidence', 'box*': 'regression'}  # noqa: RUF012

    def foreground_proxy(self, heads):
        weights = {}
        for name, head in heads.items():
            if name.startswith('cls'):
                weights[name] = head.sigmoid()
                weights[name.replace('cls', 'box')] = head.sigmoid()
        return weights

    def box_distributions(self, heads):
        return {
            name: head.unflatten(1, (4, POINTS)).movedim(2, -1)
            for name, head in heads.items()
            if name.startswith('box')
        }


def heads(seed=0, *, levels=2):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    found = {'rois': torch.zeros(3, 5, dtype=torch.int32)}
    for level in range(levels):
        found[f'cls.{level}'] = 4 * noise(2, 1, 3, 3)
        found[f'box.{level}'] = noise(2, 4 * POINTS, 3, 3)
    return found


def started(loss, *batches, adapter=None):
    loss.begin(
        NetworkProbe(
            heads_float=list(batches),
            metas=[[{}]] * len(batches),
            run=lambda number: batches[number],
            adapter=adapter or BoxAdapter(),
        )
    )
    return loss


def context(adapter=None, unit=''):
    return ReconContext(
        unit=unit, step=0, num_steps=1, adapter=adapter or BoxAdapter()
    )


def test_divergence():
    target = torch.randn(3, 4, POINTS)
    quant = torch.randn(3, 4, POINTS)
    found = divergence(quant, target)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=target),
        torch.distributions.Categorical(logits=quant),
    )
    torch.testing.assert_close(found, expected)
    # A shift that all logits share changes no probability.
    assert divergence(target + 3.0, target).abs().max() < 1e-6


@pytest.mark.parametrize(
    ('name', 'group'),
    [
        ('rpn_box.2', 'rpn_box'),
        ('box', 'box'),
        ('1.0', '1'),
        ('head.box', 'head.box'),
    ],
)
def test_levels_are_one_group(name, group):
    assert group_of(name) == group


def test_an_unchanged_network_costs_nothing():
    found = heads()
    loss = started(ForegroundKLLoss(), found)
    assert float(loss(found, found, context())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('least', [0.0, 0.3, 1.0])
def test_the_box_term_by_hand(least):
    found, other = heads(), heads(seed=1)
    loss = started(
        ForegroundKLLoss(
            other_weight=0.0, normalize=False, least_weight=least
        ),
        found,
    )
    largest = max(found[f'cls.{level}'].sigmoid().max() for level in range(2))
    split = BoxAdapter().box_distributions
    total, weight = 0.0, 0.0
    for level in range(2):
        name = f'box.{level}'
        mask = found[f'cls.{level}'].sigmoid().squeeze(1)  # N, H, W
        mask = mask * (mask >= least * largest)
        kl = divergence(split(other)[name], split(found)[name])  # N, 4, H, W
        total += float((mask[:, None] * kl).sum())
        weight += 4 * float(mask.sum())
    assert float(loss(other, found, context())) == pytest.approx(
        total / weight, rel=1e-5
    )


def test_uninformative_quantized_boxes_cost_about_one():
    # As the normalised squared error of a constant output does.
    found = heads()
    loss = started(ForegroundKLLoss(other_weight=0.0, focus=None), found)
    split = BoxAdapter().box_distributions(found)
    mean = (
        torch.cat([x.flatten(0, -2) for x in split.values()])
        .softmax(dim=-1)
        .mean(dim=0)
        .log()
    )
    flat = mean.repeat(4)[None, :, None, None]
    other = {
        name: flat.expand_as(head) if name.startswith('box') else head
        for name, head in found.items()
    }
    assert float(loss(other, found, context())) == pytest.approx(1, rel=1e-3)


def test_background_boxes_do_not_matter():
    found = heads()
    found['cls.0'] = torch.full_like(found['cls.0'], -20.0)
    found['cls.0'][0, 0, 1, 1] = 20.0
    found['cls.1'] = torch.full_like(found['cls.1'], -20.0)
    loss = started(ForegroundKLLoss(), found)
    background = {name: head.clone() for name, head in found.items()}
    background['box.0'][1] += torch.randn_like(found['box.0'][1])
    background['box.1'] += torch.randn_like(found['box.1'])
    assert float(loss(background, found, context())) < 1e-6
    foreground = {name: head.clone() for name, head in found.items()}
    foreground['box.0'][0, :, 1, 1] += torch.randn(4 * POINTS)
    assert float(loss(foreground, found, context())) > 1e-3


def test_other_heads_count_by_their_weight():
    found = heads()
    other = {
        name: head + 0.5 if name.startswith('cls') else head
        for name, head in found.items()
    }
    one = started(ForegroundKLLoss(), found)(other, found, context())
    two = started(ForegroundKLLoss(other_weight=2.0), found)(
        other, found, context()
    )
    none = started(ForegroundKLLoss(other_weight=0.0), found)(
        other, found, context()
    )
    assert float(two) == pytest.approx(2 * float(one))
    assert float(one) > 0
    assert float(none) == pytest.approx(0, abs=1e-6)


def test_gradients_pull_the_quantized_logits_to_the_float_ones():
    found = heads()
    loss = started(ForegroundKLLoss(), found)
    quant = {
        name: head.clone().requires_grad_()
        if head.is_floating_point()
        else head
        for name, head in heads(seed=2).items()
    }
    optimizer = torch.optim.Adam(
        [head for head in quant.values() if head.requires_grad], lr=0.1
    )
    first = None
    for _ in range(60):
        value = loss(quant, found, context())
        first = value.item() if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert math.isfinite(first)
    assert value.item() < 0.1 * first


def test_temperature_flattens():
    found, other = heads(), heads(seed=1)
    losses = [
        float(
            started(
                ForegroundKLLoss(
                    temperature=temperature, normalize=False, other_weight=0.0
                ),
                found,
            )(other, found, context())
        )
        for temperature in (1.0, 4.0)
    ]
    assert losses[1] < losses[0] / 4


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match='temperature'):
        ForegroundKLLoss(temperature=0.0)
    with pytest.raises(ValueError, match='box_weight'):
        ForegroundKLLoss(box_weight=0.0)
    with pytest.raises(ValueError, match='least_weight=2'):
        ForegroundKLLoss(least_weight=2)
    with pytest.raises(ValueError, match='no box distributions'):
        started(
            ForegroundKLLoss(),
            heads(),
            adapter=SimpleNamespace(foreground_proxy=lambda _: {}),
        )
    found = heads()
    loss = started(ForegroundKLLoss(), found)
    with pytest.raises(ValueError, match='network_steps'):
        loss(found, found, context(unit='backbone'))
    with pytest.raises(ValueError, match='network_steps'):
        ForegroundKLLoss()(found, found, context())
