import copy

import pytest
import torch
from saved_nets import META, Net, batch, payload_of, quantized_net, scheme
from torch import nn

from taskptq.core import (
    LevelQuantizer,
    QuantizerConfig,
    QuantSpec,
    enable,
)
from taskptq.core.switches import quantizers
from taskptq.export import (
    QuantizedCheckpointError,
    is_quantized,
    load,
    save,
    unpack_model,
    verify,
)
from taskptq.export.schema import compute_digest
from taskptq.modules.base import Scheme, quant_modules
from taskptq.modules.conv import QuantConv2d
from taskptq.modules.linear import QuantLinear


def tensor_bytes(tensor):
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize('num_bits', [2, 3, 4, 8])
@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('learned', [True, False])
def test_reloaded_model_predicts_bit_for_bit(
    tmp_path, num_bits, symmetric, learned
):
    recipe = scheme(num_bits, symmetric=symmetric, learned=learned)
    model = quantized_net(recipe)
    save(payload_of(model), tmp_path / 'q.pth')
    other = Net(recipe, seed=9).eval()
    unpack_model(load(tmp_path / 'q.pth'), other)
    with torch.no_grad():
        expected, found = model(batch()), other(batch())
    assert torch.equal(expected, found)
    assert not torch.equal(expected, Net(recipe, seed=9).eval()(batch()))
    state, other_state = model.state_dict(), other.state_dict()
    for key, value in state.items():
        if '.observer.' not in key:
            assert value.dtype == other_state[key].dtype, key
            assert torch.equal(value, other_state[key]), key
    for (_, one), (_, two) in zip(
        quantizers(model), quantizers(other), strict=True
    ):
        assert two.enabled
        assert one.frozen == two.frozen
        assert (one.quant_min, one.quant_max) == (two.quant_min, two.quant_max)


def scheme_of_levels(levels, num_bits):
    weight = QuantizerConfig(
        spec=QuantSpec(num_bits=num_bits),
        per_channel=True,
        quantizer=LevelQuantizer,
        quantizer_kwargs={'levels': levels},
    )
    return Scheme(weight=weight, activation=scheme().activation)


@pytest.mark.parametrize(
    ('levels', 'num_bits'),
    [('binary', 1), ('ternary', 2), ('two-plane', 2), ('dual', 2)],
)
def test_levels_predict_bit_for_bit_after_reloading(
    tmp_path, levels, num_bits
):
    recipe = scheme_of_levels(levels, num_bits)
    model = quantized_net(recipe)
    payload = payload_of(model)
    entry = payload['weights']['body.weight']
    assert len(entry['packed']) == model.body.weight.numel() * num_bits // 8
    assert payload['quantizers']['body.weight_quantizer.grid'].tolist() == [
        0,
        model.body.weight_quantizer.num_levels - 1,
    ]
    save(payload, tmp_path / 'q.pth')
    other = Net(recipe, seed=9).eval()
    unpack_model(load(tmp_path / 'q.pth'), other)
    with torch.no_grad():
        assert torch.equal(model(batch()), other(batch()))
    for name, value in model.state_dict().items():
        if '.observer.' not in name:
            assert torch.equal(value, other.state_dict()[name]), name


def test_damaged_levels_are_refused_by_name():
    recipe = scheme_of_levels('ternary', 2)
    model = quantized_net(recipe)
    cases = {
        'body.weight.* has the code 3, its grid only 3 levels': (
            lambda p: p['weights']['body.weight']['packed'].fill_(255)
        ),
        'ternary levels that are not positive': (
            lambda p: p['quantizers'][
                'body.weight_quantizer.coefficients'
            ].neg_()
        ),
        r'grid \(0, 1\)': (
            lambda p: p['quantizers']['body.weight_quantizer.grid'].copy_(
                torch.tensor([0, 1])
            )
        ),
        'coefficients that is not finite': (
            lambda p: p['quantizers'][
                'body.weight_quantizer.coefficients'
            ].fill_(torch.nan)
        ),
    }
    for message, damage in cases.items():
        payload = copy.deepcopy(payload_of(model))
        damage(payload)
        payload['digest'] = compute_digest(payload)
        with pytest.raises(QuantizedCheckpointError, match=message) as caught:
            unpack_model(payload, Net(recipe, seed=9).eval())
        assert '\n' not in str(caught.value)


def test_quantized_model_differs_from_the_float_one():
    model = quantized_net()
    before = model.up.weight.clone()
    torch.manual_seed(0)
    float_model = Net(scheme())
    assert not torch.equal(before, float_model.up.weight)


def test_packing_again_gives_the_same_digest():
    model = quantized_net()
    other = Net(scheme(), seed=4).eval()
    first = payload_of(model)
    unpack_model(first, other)
    assert payload_of(other)['digest'] == first['digest']


def test_payload_is_plain_and_marked(tmp_path):
    payload = payload_of(quantized_net())
    assert is_quantized(payload)
    assert not is_quantized({'state_dict': {}})
    assert not is_quantized(None)
    assert isinstance(payload['state_dict'], str)
    assert payload['recipe']['names'] == ['a']
    save(payload, tmp_path / 'q.pth')
    stored = torch.load(tmp_path / 'q.pth', weights_only=True)
    assert is_quantized(stored)
    assert isinstance(stored['state_dict'], str)
    assert stored['digest'] == payload['digest']
    loaded = load(tmp_path / 'q.pth')
    assert loaded['meta'] == META
    assert loaded['recipe'] == payload['recipe']
    verify(loaded)


def test_shared_modules_are_stored_once():
    payload = payload_of(quantized_net())
    assert 'heads.0.weight' in payload['weights']
    names = [
        name
        for section in ('weights', 'quantizers', 'float')
        for name in payload[section]
    ]
    assert not [name for name in names if name.startswith('heads.1.')]
    assert 'heads.0.bias' in names


def test_tied_parameter_is_stored_once():
    def tied():
        model = nn.Sequential(
            QuantLinear.from_float(nn.Linear(6, 6), scheme=scheme()),
            nn.Linear(6, 6),
            QuantLinear.from_float(nn.Linear(6, 6), scheme=scheme()),
        )
        model[2].weight = model[0].weight
        return model

    model = tied()
    for _, module in quant_modules(model):
        module.calibrate_weights()
    model[0].freeze()
    model[2].freeze()
    enable(model)
    payload = payload_of(model)
    assert list(payload['weights']) == ['0.weight']
    other = tied()
    unpack_model(payload, other)
    assert other[2].weight is other[0].weight
    x = torch.randn(3, 6)
    assert torch.equal(model(x), other(x))


def test_w4_layer_takes_a_sixth_of_its_float_bytes():
    layer = nn.Conv2d(16, 24, 3)
    model = QuantConv2d.from_float(layer, scheme=scheme(symmetric=False))
    float_bytes = tensor_bytes(layer.weight)
    model.calibrate_weights()
    model.freeze()
    payload = payload_of(model)
    stored = tensor_bytes(payload['weights']['weight']['packed'])
    stored += sum(
        tensor_bytes(tensor)
        for name, tensor in payload['quantizers'].items()
        if name.startswith('weight_quantizer.')
    )
    assert stored <= float_bytes / 6
    zero_point = payload['quantizers']['weight_quantizer.zero_point']
    assert zero_point.element_size() == 1
    assert model.weight_quantizer.zero_point.dtype == torch.int32


def test_payload_shares_no_memory_with_the_model():
    model = quantized_net()
    payload = payload_of(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    verify(payload)


def test_never_observed_quantizer_stays_off():
    model = quantized_net()
    assert not model.unused.input_quantizer.calibrated
    other = Net(scheme(), seed=2)
    unpack_model(payload_of(model), other)
    assert not other.unused.input_quantizer.calibrated
    x = torch.randn(2, 5)
    assert torch.equal(other.unused(x), model.unused(x))


def test_unfrozen_model_is_refused():
    model = quantized_net()
    model.body.weight_quantizer.frozen = False
    with pytest.raises(QuantizedCheckpointError, match=r'body.*not frozen'):
        payload_of(model)
    model = quantized_net()
    with torch.no_grad():
        model.up.weight.add_(1e-3)
    with pytest.raises(QuantizedCheckpointError, match=r'up.*not frozen'):
        payload_of(model)


class OtherNet(Net):
    def __init__(self, recipe, **kwargs):
        super().__init__(recipe, **kwargs)
        self.extra = nn.Linear(2, 2)
        del self.norm
        self.norm = nn.Identity()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Net(scheme(), width=6), "weight 'body.weight' has shape"),
        (lambda: Net(scheme(8)), "weight 'body.weight' has 4 bits"),
        (lambda: OtherNet(scheme()), "the file lacks 'extra.bias'"),
        (lambda: OtherNet(scheme()), "no 'norm.bias'"),
        (lambda: Net(Scheme()), "no quantized weight 'body.weight'"),
        (lambda: nn.Linear(2, 2), 'more; test it with the config'),
    ],
)
def test_other_model_is_refused_and_left_alone(make, message):
    payload = payload_of(quantized_net())
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(QuantizedCheckpointError, match=message):
        unpack_model(payload, model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_per_tensor_model_is_refused():
    weight = QuantizerConfig(spec=QuantSpec(num_bits=4, symmetric=True))
    other = Net(Scheme(weight=weight, activation=scheme().activation))
    with pytest.raises(QuantizedCheckpointError, match='8 scale'):
        unpack_model(payload_of(quantized_net()), other)


def tamper_weight(payload):
    payload['weights']['body.weight']['packed'][3] ^= 1


def tamper_scale(payload):
    payload['quantizers']['body.weight_quantizer.scale'][0] *= 2


def tamper_float(payload):
    payload['float']['stem.weight'][0, 0, 0, 0] += 1e-6


def tamper_name(payload):
    payload['float']['renamed'] = payload['float'].pop('stem.weight')


def tamper_recipe(payload):
    payload['recipe']['seed'] = 4


def tamper_bits(payload):
    payload['weights']['body.weight']['quant_min'] = 0


@pytest.mark.parametrize(
    'tamper',
    [
        tamper_weight,
        tamper_scale,
        tamper_float,
        tamper_name,
        tamper_recipe,
        tamper_bits,
    ],
)
def test_tampered_payload_is_refused(tmp_path, tamper):
    payload = payload_of(quantized_net())
    tamper(payload)
    with pytest.raises(QuantizedCheckpointError, match='digest'):
        unpack_model(payload, Net(scheme()))
    torch.save(payload, tmp_path / 'q.pth')
    with pytest.raises(QuantizedCheckpointError, match=r'q\.pth.*digest'):
        load(tmp_path / 'q.pth')


def test_wrong_schema_missing_section_and_other_file(tmp_path):
    path = tmp_path / 'x.pth'
    payload = payload_of(quantized_net())
    payload['taskptq']['schema'] = 99
    torch.save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match='schema 99'):
        load(path)
    payload = payload_of(quantized_net())
    del payload['float']
    torch.save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match=r"lacks.*'float'"):
        load(path)
    payload = payload_of(quantized_net())
    del payload['weights']['body.weight']['shape']
    torch.save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match=r'body\.weight'):
        load(path)
    torch.save({'state_dict': {'w': torch.ones(2)}}, path)
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)
    torch.save(torch.ones(2), path)
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)
