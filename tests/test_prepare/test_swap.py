"""Swapping: nothing silent, nothing half done, nothing copied."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from taskptq.core import float_only
from taskptq.modules import QuantConv2d, QuantLinear, QuantModule
from taskptq.prepare import (
    QConfig,
    SwapReport,
    check_swap,
    prepare,
    swap,
)
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model

W4 = {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}


def rows(report: SwapReport) -> dict:
    return {row.name: row for row in report.rows}


def state(model: nn.Module) -> list:
    """What a failed call must leave as it was."""
    return [
        (name, id(module), type(module))
        for name, module in model.named_modules()
    ]


class Odd(nn.Module):
    """Layers that have no counterpart, and some that have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.signal = nn.Conv3d(3, 4, 3)
        self.table = nn.Embedding(5, 4)
        self.lstm = nn.LSTM(4, 4)
        self.norm = nn.LayerNorm(4)
        self.tokens = nn.Parameter(torch.zeros(2, 4))
        self.fc_cls = nn.Linear(4, 2)


def test_every_layer_has_a_row_and_every_float_one_a_reason() -> None:
    report = swap(Odd(), QConfig.from_dict(W4))
    by_name = rows(report)
    assert set(by_name) == {'', 'stem', 'signal', 'table', 'lstm', 'fc_cls'}
    left = {name for name, row in by_name.items() if row.status == 'float'}
    assert left == {'', 'signal', 'table', 'lstm'}
    assert 'torch.nn.modules.conv.Conv3d' in by_name['signal'].reason
    assert 'look-up' in by_name['table'].reason
    assert report.count('quantized') == 2
    assert report.count('float') == 4


@pytest.mark.parametrize('name', TINY_MODELS)
def test_tiny_models_are_quantized_whole(name: str) -> None:
    model = tiny_model(name)
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention)
    layers = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    report = swap(model, QConfig.from_dict(W4))
    by_name = rows(report)
    assert layers <= set(by_name)
    tables = {
        n for n, m in model.named_modules() if isinstance(m, nn.Embedding)
    }
    assert {row.status for row in report.rows if row.name not in tables} == {
        'quantized'
    }
    for layer in layers:
        assert isinstance(model.get_submodule(layer), QuantModule)


@pytest.mark.parametrize('name', TINY_MODELS)
def test_quantizers_off_is_the_float_model(name: str) -> None:
    model = tiny_model(name)
    x = tiny_batches(name)[0]
    with torch.no_grad():
        before = model(x)
        swap(model, QConfig.from_dict(W4))
        after = model(x)
        with float_only(model):
            again = model(x)
    assert torch.equal(after, again)
    error = (after - before).abs().max()
    exact = name in ('conv', 'transposed')
    assert error == 0 if exact else error <= 1e-5 * before.abs().max()


def test_parameters_are_shared_not_copied() -> None:
    model = tiny_model('transformer')
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    swap(model, QConfig.from_dict(W4))
    after = {
        n: p.data_ptr() for n, p in model.named_parameters() if n in before
    }
    assert after == before


def test_depthwise_layers_have_their_own_least_bits() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 4, 1),
    )
    settings = {**W4, 'edge_bits': None, 'depthwise_bits': 8}
    found = rows(swap(model, QConfig.from_dict(settings)))
    bits = [found[name].weight_bits for name in '0123']
    assert bits == [4, 8, 4, 4]


def test_bits_of_each_point_are_reported() -> None:
    model = tiny_model('window')
    report = swap(
        model,
        QConfig.from_dict(
            {
                **W4,
                'attention': {'num_bits': 6},
                'softmax': {'num_bits': 7},
                'edge_bits': None,
            }
        ),
    )
    by_name = rows(report)
    attention, linear = by_name['attn'], by_name['attn.qkv']
    assert (
        attention.weight_bits,
        attention.activation_bits,
        attention.attention_bits,
        attention.softmax_bits,
    ) == (None, None, 6, 7)
    assert (
        linear.weight_bits,
        linear.activation_bits,
        linear.attention_bits,
        linear.softmax_bits,
    ) == (4, 4, None, None)


@pytest.mark.parametrize(
    ('attention', 'expected'),
    [({'num_bits': 8}, 8), ({'num_bits': 3}, 4), (False, 4)],
)
def test_positions_have_the_bits_of_attention(
    attention: object, expected: int
) -> None:
    model = nn.ModuleDict(
        {
            'attn': nn.ModuleDict(
                {
                    name: nn.Linear(4, 4)
                    for name in ('kpos_proj', 'kcontent_proj')
                }
            )
        }
    )
    report = swap(
        model,
        QConfig.from_dict({**W4, 'attention': attention, 'edge_bits': None}),
    )
    found = {name: row.activation_bits for name, row in rows(report).items()}
    assert found == {'attn.kpos_proj': expected, 'attn.kcontent_proj': 4}
    assert rows(report)['attn.kpos_proj'].weight_bits == 4


def test_fewest_bits_of_the_operands_are_reported() -> None:
    report = swap(
        tiny_model('window'),
        QConfig.from_dict({'key': {'num_bits': 5}, 'value': {'num_bits': 6}}),
    )
    assert rows(report)['attn'].attention_bits == 5
    assert not any('attended' in row.name for row in report.rows)


def test_first_conv_and_last_head_layers_are_edges() -> None:
    report = swap(Odd(), QConfig.from_dict({**W4, 'edge_bits': 7}))
    assert rows(report)['stem'].weight_bits == 7
    assert rows(report)['fc_cls'].weight_bits == 7
    assert rows(report)['fc_cls'].reason == 'edge layer'


@pytest.mark.parametrize(
    'name',
    [
        'head.rpn_cls',
        'head.retina_reg',
        'head.rtm_cls.2',
        'fc_reg',
        'conv_seg',
        'mask.conv_logits',
        'head.multi_level_conv_obj.0',
        'cls_branches.3',
    ],
)
def test_output_layers_are_known_by_name(name: str) -> None:
    assert edge_of({name: nn.Linear(4, 4), 'other': nn.Linear(4, 4)}) == {name}


def edge_of(layers: dict[str, nn.Module]) -> set[str]:
    model = nn.Module()
    for name, layer in layers.items():
        *parents, last = name.split('.')
        at = model
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(last, layer)
    report = swap(model, QConfig.from_dict(W4))
    return {row.name for row in report.rows if row.reason == 'edge layer'}


def test_last_layer_of_a_regression_network_is_an_edge() -> None:
    layers = {f'reg_branches.0.{i}': nn.Linear(4, 4) for i in (0, 2, 10)}
    assert edge_of(layers) == {'reg_branches.0.10'}


def test_user_edges() -> None:
    model = tiny_model('conv')
    report = swap(model, QConfig.from_dict({**W4, 'edges': ['head']}))
    assert rows(report)['head'].weight_bits == 8
    assert rows(report)['layer1.conv1'].weight_bits == 4


def test_keep_float_and_overrides() -> None:
    model = tiny_model('conv')
    report = swap(
        model,
        QConfig.from_dict(
            {
                **W4,
                'keep_float': ['layer1.*'],
                'overrides': [
                    {'pattern': 'layer2.conv*', 'weight': {'num_bits': 2}},
                    {
                        'pattern': 'layer2.conv2',
                        'weight': False,
                        'activation': False,
                    },
                ],
            }
        ),
    )
    by_name = rows(report)
    assert "keep_float 'layer1.*'" in by_name['layer1.conv1'].reason
    assert by_name['layer2.conv1'].weight_bits == 2
    assert by_name['layer2.conv2'].status == 'float'
    assert 'False' in by_name['layer2.conv2'].reason
    assert type(model.layer1.conv1) is nn.Conv2d
    assert isinstance(model.layer2.conv1, QuantConv2d)


def test_layer_without_any_quantizer_is_not_called_quantized() -> None:
    model = tiny_model('window')
    report = swap(
        model, QConfig.from_dict({'attention': False, 'softmax': False})
    )
    assert rows(report)['attn'].status == 'float'
    assert rows(report)['attn.qkv'].status == 'quantized'


def test_projection_that_a_float_attention_reads_stays_float() -> None:
    model = tiny_model('transformer')
    report = swap(
        model, QConfig.from_dict({'keep_float': ['layers.0.self_attn']})
    )
    by_name = rows(report)
    inner = by_name['layers.0.self_attn.out_proj']
    assert inner.status == 'float'
    assert 'layers.0.self_attn' in inner.reason
    assert by_name['layers.1.self_attn.out_proj'].status == 'quantized'


BAD = {
    'keep_float': ({'keep_float': ['layer9*']}, 'keep_float.*layer9'),
    'edges': ({'edges': ['layer9*']}, 'edges.*layer9'),
    'overrides': (
        {'overrides': [{'pattern': 'layer9*', 'weight': False}]},
        'overrides.*layer9',
    ),
    'all float': ({'keep_float': ['*']}, 'no layer to quantize'),
    'all off': (
        {'weight': False, 'activation': False},
        'no layer to quantize',
    ),
}


@pytest.mark.parametrize('kind', BAD)
@pytest.mark.parametrize('call', [swap, prepare, check_swap])
def test_failed_check_changes_nothing(call, kind: str) -> None:
    config, message = BAD[kind]
    model = tiny_model('conv')
    before = state(model)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        call(model, QConfig.from_dict(config))
    assert state(model) == before
    assert weights.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_check_alone_changes_nothing() -> None:
    model = tiny_model('conv')
    before = state(model)
    check_swap(model, QConfig.from_dict({}))
    assert state(model) == before


def test_swapping_twice_is_refused() -> None:
    model = tiny_model('conv')
    prepare(model, QConfig.from_dict({}))
    with pytest.raises(ValueError, match='stem is quantized already'):
        prepare(model, QConfig.from_dict({}))


def test_bare_layer_is_refused() -> None:
    with pytest.raises(ValueError, match='bare Linear'):
        swap(nn.Linear(2, 2), QConfig.from_dict({}))


def test_module_under_two_names_is_one_afterwards() -> None:
    model = nn.Module()
    shared = nn.Conv2d(3, 3, 1)
    model.a = nn.Sequential(shared, nn.ReLU())
    model.b = nn.Sequential(nn.ReLU(), shared)
    report = swap(model, QConfig.from_dict({}))
    assert model.a[0] is model.b[1]
    assert isinstance(model.a[0], QuantConv2d)
    assert [row.name for row in report.rows] == ['a.0']


def test_subclass_is_not_swapped_by_its_base() -> None:

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4))
    report = swap(model, QConfig.from_dict({}))
    assert type(model[0]) is Scaled
    assert isinstance(model[1], QuantLinear)
    assert 'Scaled' in rows(report)['0'].reason


def test_attention_without_counterpart_is_listed() -> None:

    class StripeAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

    model = nn.Sequential(StripeAttention())
    by_name = rows(swap(model, QConfig.from_dict({})))
    assert by_name['0'].status == 'float'
    assert 'no counterpart' in by_name['0'].reason
    assert by_name['0.qkv'].status == 'quantized'


def test_wrapper_of_an_attention_has_no_row_of_its_own() -> None:
    bricks = pytest.importorskip('mmcv.cnn.bricks.transformer')
    model = nn.Sequential(bricks.MultiheadAttention(8, 2))
    by_name = rows(swap(model, QConfig.from_dict({})))
    assert set(by_name) == {'0.attn', '0.attn.out_proj'}


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_shifted_windows_are_listed_once(host: str) -> None:
    swin = pytest.importorskip(f'{host}.models.backbones.swin')
    model = nn.Sequential(swin.ShiftWindowMSA(8, 2, window_size=4))
    by_name = rows(swap(model, QConfig.from_dict({})))
    assert set(by_name) == {'0.w_msa', '0.w_msa.qkv', '0.w_msa.proj'}
    assert {row.status for row in by_name.values()} == {'quantized'}


def test_host_class_stays_an_instance_of_itself() -> None:
    wrappers = pytest.importorskip('mmcv.cnn.bricks.wrappers')
    model = nn.Sequential(wrappers.Conv2d(3, 3, 1))
    swap(model, QConfig.from_dict({}))
    assert isinstance(model[0], wrappers.Conv2d)
    assert isinstance(model[0], QuantConv2d)


def test_report_as_json_and_table(tmp_path: Path) -> None:
    report = prepare(
        tiny_model('conv'), QConfig.from_dict({'keep_float': ['head']})
    )
    report.save(tmp_path / 'report.json')
    plain = json.loads((tmp_path / 'report.json').read_text())
    assert plain == report.to_dict()
    assert plain['num_float'] == 1
    assert plain['num_quantized'] == len(plain['modules']) - 1
    assert 'layer1.bn1' in plain['folded_norms']
    lines = report.table().splitlines()
    assert len(lines) == 1 + len(report.rows)
    assert lines[1].split()[:3] == ['stem', 'Conv2d', '8/8/-/-']
    assert "float (qconfig.keep_float 'head')" in lines[-1]
