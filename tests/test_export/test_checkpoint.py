import copy
import io
import zipfile

import pytest
import torch
from torch import nn

from taskptq.core import (
    LSQQuantizer,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
    enable,
    observing,
)
from taskptq.core.switches import quantizers
from taskptq.export import (
    QuantizedCheckpointError,
    is_quantized,
    load,
    pack_model,
    save,
    unpack_model,
    verify,
)
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.modules.base import Scheme, quant_modules
from taskptq.modules.conv import QuantConv2d, QuantConvTranspose2d
from taskptq.modules.linear import QuantLinear

RECIPE = {'qconfig': {'weight': {'num_bits': 4}}, 'seed': 3, 'names': ('a',)}
META = {'classes': ['cell', 'dot'], 'ratio': 0.5, 'none': None}


def scheme(num_bits=4, *, symmetric=True, learned=False):
    activation = QuantizerConfig(
        spec=QuantSpec(num_bits=8),
        quantizer=LSQQuantizer,
        quantizer_kwargs={'learn_zero_point': learned},
    )
    weight = QuantizerConfig(
        spec=QuantSpec(num_bits=num_bits, symmetric=symmetric),
        per_channel=True,
        observer=MSEObserver,
    )
    return Scheme(weight=weight, activation=activation)


class Net(nn.Module):
    """Conv, norm, deconv, a shared head seen under two names, a softmax."""

    def __init__(self, recipe, *, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = QuantConv2d.from_float(
            nn.Conv2d(width, width, 3, padding=1), scheme=recipe
        )
        self.norm = nn.BatchNorm2d(width)
        self.up = QuantConvTranspose2d.from_float(
            nn.ConvTranspose2d(width, 5, 2, stride=2), scheme=recipe
        )
        head = QuantLinear.from_float(nn.Linear(5, 3), scheme=recipe)
        self.heads = nn.ModuleList([head, head])
        self.unused = QuantLinear.from_float(nn.Linear(5, 4), scheme=recipe)
        self.softmax_quantizer = PowerOfTwoQuantizer(
            QuantSpec(num_bits=4),
            observer=MSEObserver(QuantSpec(num_bits=4)),
            tau=2,
        )

    def forward(self, x):
        x = self.norm(self.body(self.stem(x).relu()))
        x = self.up(x).mean(dim=(2, 3))
        x = self.heads[0](x) + self.heads[1](x * 2)
        return self.softmax_quantizer(x.softmax(dim=-1))


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 8, 8, generator=generator)


@torch.no_grad()
def quantized_net(recipe=None, **kwargs):
    model = Net(recipe or scheme(), **kwargs)
    model(batch())  # moves the norm's statistics away from their start
    model.eval()
    with observing(model):
        model(batch())
    for _, quantizer in quantizers(model):
        quantizer.calibrate()
    for _, module in quant_modules(model):
        module.calibrate_weights()
        module.freeze()
    enable(model)
    return model


def payload_of(model):
    return pack_model(model, recipe=RECIPE, meta=META)


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
    loaded = torch.load(tmp_path / 'q.pth', weights_only=True)
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


@pytest.mark.parametrize(
    'recipe', [{'x': object()}, {'x': {'y': torch.ones(1)}}, {(1, 2): 3}]
)
def test_recipe_of_other_types_is_refused(recipe):
    with pytest.raises(QuantizedCheckpointError, match='recipe'):
        pack_model(quantized_net(), recipe=recipe, meta={})


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
    save(payload, tmp_path / 'q.pth')
    with pytest.raises(QuantizedCheckpointError, match=r'q\.pth.*digest'):
        load(tmp_path / 'q.pth')


def test_wrong_schema_missing_section_and_other_file(tmp_path):
    path = tmp_path / 'x.pth'
    payload = payload_of(quantized_net())
    payload['taskptq']['schema'] = 99
    save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match='schema 99'):
        load(path)
    payload = payload_of(quantized_net())
    del payload['float']
    save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match=r"lacks.*'float'"):
        load(path)
    payload = payload_of(quantized_net())
    del payload['weights']['body.weight']['shape']
    save(payload, path)
    with pytest.raises(QuantizedCheckpointError, match=r'body\.weight'):
        load(path)
    torch.save({'state_dict': {'w': torch.ones(2)}}, path)
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)
    torch.save(torch.ones(2), path)
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)


@pytest.mark.parametrize('share', [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / 'q.pth'
    save(payload_of(quantized_net()), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(QuantizedCheckpointError, match='truncated'):
        load(path)


def test_text_file_and_foreign_zip_are_refused(tmp_path):
    path = tmp_path / 'q.pth'
    path.write_text('hello')
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.txt', 'hello')
    with pytest.raises(QuantizedCheckpointError, match='damaged'):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / 'none.pth')


RAN = []


class Strange:
    def __reduce__(self):
        return RAN.append, (1,)


def test_strange_objects_are_refused_and_never_run(tmp_path):
    payload = payload_of(quantized_net())
    payload['meta'] = {'x': Strange()}
    save(payload, tmp_path / 'q.pth')
    with pytest.raises(QuantizedCheckpointError, match='other than tensors'):
        load(tmp_path / 'q.pth')
    assert not RAN


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / 'sub' / 'q.pth'
    payload = payload_of(quantized_net())
    save(payload, path)
    before = path.read_bytes()
    payload['meta'] = {'x': lambda: None}
    with pytest.raises((AttributeError, TypeError)):
        save(payload, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['q.pth']


def test_payload_round_trips_through_a_buffer():
    payload = payload_of(quantized_net())
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    other = Net(scheme(), seed=1).eval()
    unpack_model(loaded, other)
    assert payload_of(other)['digest'] == payload['digest']
