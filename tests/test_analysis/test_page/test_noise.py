"""Signal to noise of layers."""

import copy
import math

import pytest
import torch
from torch import nn

from taskptq.analysis.page.noise import (
    MOST_DB,
    Energy,
    LayerNoise,
    by_group,
    kind_of,
    measure_noise,
    summarize,
)
from taskptq.calibration import calibrate
from taskptq.core.switches import enable
from taskptq.hosts import registry
from taskptq.prepare import QConfig, prepare


def run(model, batch):
    return model(batch)


def test_db_of_known_noise():
    energy = Energy()
    assert energy.db is None
    energy.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert energy.db == pytest.approx(20.0)
    clean = Energy()
    clean.add(torch.ones(3), torch.ones(3))
    assert clean.db == MOST_DB
    assert Energy(math.inf, 1.0).db is None


def test_every_layer_is_measured_alone_and_inside(pair):
    twin, model, batches = pair
    layers = measure_noise(twin, model, batches, forward=run)
    assert [layer.name for layer in layers] == [
        name for name, m in model.named_modules() if hasattr(m, 'weight_slots')
    ]
    first, *others = layers
    # Nothing stands before the first layer: alone is as inside.
    assert first.output_db == pytest.approx(first.own_db)
    assert all(0 < layer.own_db < 60 for layer in layers)
    # Noise of the layers before comes on top.
    assert all(layer.output_db < layer.own_db for layer in others[:-1])
    assert all(layer.weight_db > 10 for layer in layers)


def test_a_model_without_quantizers_has_no_noise(pair):
    twin, _, batches = pair
    same = copy.deepcopy(twin)
    layers = measure_noise(twin, same, batches, forward=run)
    values = {layer.own_db for layer in layers}
    assert values == {MOST_DB}
    assert {layer.output_db for layer in layers} == {MOST_DB}


def test_other_shapes_inside_are_not_compared(pair):
    twin, model, batches = pair
    calls = []

    def growing(model, batch):
        calls.append(model)
        size = 1 + (model is pair[1])
        return model(batch.repeat(size, 1, 1, 1))

    layers = measure_noise(twin, model, batches[:1], forward=growing)
    assert {layer.output_db for layer in layers} == {None}
    assert all(layer.own_db is not None for layer in layers)


class Selecting(nn.Module):
    """As a RoI extractor: its second argument says which rows it takes."""

    def forward(self, x, rois):
        return x[rois]


class TwoStage(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.select = Selecting()
        self.head = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        features = self.stem(x)
        rows = features.mean(dim=(1, 2, 3)).argsort()
        return self.head(self.select(features, rows))


def test_layers_on_rows_of_their_own_are_not_compared_inside(
    monkeypatch,
):
    name = registry.host_name(Selecting)
    monkeypatch.setitem(registry.REPLAYED_INPUTS, name, 'rois')
    model, batches = TwoStage().eval(), [torch.rand(4, 3, 8, 8)]
    twin = copy.deepcopy(model)
    for one in (model, twin):
        prepare(one, QConfig.from_dict({}), batch=batches[0], forward=run)
    calibrate(model, batches, forward=run)
    enable(model)
    stem, head = measure_noise(twin, model, batches, forward=run)
    assert stem.output_db == pytest.approx(stem.own_db)
    assert head.own_db > 20
    assert head.output_db is None


def test_hooks_are_gone(pair):
    twin, model, batches = pair
    measure_noise(twin, model, batches[:1], forward=run)
    for one in (twin, model):
        assert not any(m._forward_hooks for m in one.modules())
        assert not any(m._forward_pre_hooks for m in one.modules())


@pytest.mark.parametrize(
    ('module', 'kind'),
    [
        (nn.Conv2d(8, 8, 3, groups=8), 'depthwise convolution'),
        (nn.Conv2d(8, 8, 3), 'convolution'),
        (nn.Conv2d(8, 8, 1), '1x1 convolution'),
        (nn.Linear(2, 2), 'linear'),
        (nn.MultiheadAttention(4, 1), 'attention'),
    ],
)
def test_kinds(module, kind):
    assert kind_of(module) == kind


def layer(name, own, *, output=10.0, last=False):
    return LayerNoise(
        name=name,
        kind='linear',
        part=name.partition('.')[0],
        own_db=own,
        output_db=output,
        is_output=last,
    )


def test_groups_are_sorted_by_their_noisiest_layer():
    rows = [
        one.to_dict()
        for one in (layer('a.0', 30.0), layer('a.1', 10.0), layer('b.0', 20.0))
    ]
    first, second = by_group(rows, key='part')
    assert first == {
        'name': 'a',
        'layers': 2,
        'mean_db': 20.0,
        'least_db': 10.0,
        'worst': 'a.1',
    }
    assert second['name'] == 'b'
    assert by_group([layer('c', None).to_dict()], key='part') == []


def test_summary_orders_layers_and_takes_the_median_of_outputs():
    found = summarize(
        [
            layer('a', 30.0),
            layer('b', None),
            layer('c', 5.0, output=8.0, last=True),
            layer('d', 6.0, output=4.0, last=True),
        ]
    )
    assert [one['name'] for one in found['ordered']] == ['c', 'd', 'a', 'b']
    assert found['output_db'] == 6.0
    assert summarize([layer('a', 30.0)])['output_db'] is None
