"""Input scales per channel, where each output channel reads one channel."""

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core import MSEObserver, QuantSpec, float_only, quantizing
from taskptq.export import pack_model, unpack_model
from taskptq.modules.conv import is_depthwise
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import ReconstructionConfig, freeze, reconstruct

CHANNELS = 6


class Net(nn.Module):
    """A pointwise and a depthwise layer over channels of unequal size."""

    def __init__(self, multiplier=1, transposed=False):
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.depthwise = kind(
            CHANNELS,
            CHANNELS * multiplier,
            3,
            padding=1,
            groups=CHANNELS,
        )
        self.head = nn.Conv2d(CHANNELS * multiplier, 4, 1)
        with torch.no_grad():
            self.stem.weight.mul_(
                torch.logspace(-2, 1, CHANNELS)[:, None, None, None]
            )

    def forward(self, x):
        x = nn.functional.silu(self.stem(x))
        return self.head(self.depthwise(x))


def run(model, batch):
    return model(batch)


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3)]


def quantized(model, **activation):
    activation = {'per_channel': True, **activation}
    config = QConfig.from_dict(dict(activation=activation, edge_bits=None))
    prepare(model.eval(), config)
    calibrate(model, batches(), forward=run)
    return model


def test_what_is_depthwise():
    assert is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    assert is_depthwise(nn.ConvTranspose2d(4, 4, 3, groups=4))
    for module in (
        nn.Conv2d(1, 8, 3),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Linear(4, 4),
    ):
        assert not is_depthwise(module)


@pytest.mark.parametrize(
    ('observer', 'kind'),
    [
        ('MinMaxObserver', 'AffineQuantizer'),
        ('MSEObserver', 'AffineQuantizer'),
        ('PercentileObserver', 'LSQQuantizer'),
        ('KLObserver', 'AffineQuantizer'),
        ('ACIQObserver', 'AffineQuantizer'),
        ('MovingAverageMinMaxObserver', 'AffineQuantizer'),
    ],
)
@pytest.mark.parametrize('multiplier', [1, 2])
def test_a_scale_for_each_channel(observer, kind, multiplier):
    model = quantized(Net(multiplier), type=kind, observer=dict(type=observer))
    assert model.stem.input_quantizer.scale.shape == (1,)
    assert model.head.input_quantizer.scale.shape == (1,)
    scale = model.depthwise.input_quantizer.scale
    assert scale.shape == (CHANNELS,)
    # Channels differ a thousandfold, and so do their steps.
    assert scale.max() > 50 * scale.min()


def test_all_batches_count():
    """Each channel's range fits its values of all batches, not the last."""
    model = quantized(Net(), observer=dict(type='MSEObserver'))
    quantizer = model.depthwise.input_quantizer
    seen = []
    model.depthwise.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with float_only(model), torch.no_grad():
        for batch in batches():
            model(batch)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    for channel in range(CHANNELS):
        alone = MSEObserver(QuantSpec())
        alone.observe(values[channel])
        low, high = alone.compute_range()
        assert (high - low) / 255 == pytest.approx(
            float(quantizer.scale[channel]), rel=0.02
        )


def test_the_error_falls():
    """The weakest channel keeps what one scale for all would round away."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, CHANNELS, 8, 8, generator=generator)
    x *= torch.logspace(-2, 1, CHANNELS)[:, None, None]
    errors = {}
    for per_channel in (False, True):
        layer = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS)
        model = nn.Sequential(layer)
        config = dict(activation=dict(per_channel=per_channel), edge_bits=None)
        prepare(model.eval(), QConfig.from_dict(config))
        calibrate(model, [x], forward=run)
        quantizer = model[0].input_quantizer
        codes = quantizer.dequantize(quantizer.quantize(x))
        error = (codes - x)[:, 0].square().mean()
        errors[per_channel] = float(error / x[:, 0].square().mean())
    assert errors[True] < 1e-4
    assert errors[False] > 0.1


@pytest.mark.parametrize('transposed', [False, True])
def test_as_integers(transposed):
    """The layer is an integer convolution per channel, exactly."""
    model = quantized(Net(transposed=transposed))
    freeze(model)
    layer = model.depthwise
    x = torch.randn(1, CHANNELS, 5, 5)
    quantizer, weights = layer.input_quantizer, layer.weight_quantizer
    codes = quantizer.quantize(x).double()
    codes -= quantizer.zero_point.double()[:, None, None]
    kernel = weights.quantize(layer.weight).double()
    function = (
        nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
    )
    sums = function(codes, kernel, padding=1, groups=CHANNELS)
    scale = (quantizer.scale * weights.scale).double()[:, None, None]
    expected = sums * scale + layer.bias.double()[:, None, None]
    with quantizing(model), torch.no_grad():
        assert torch.allclose(layer(x).double(), expected, atol=1e-4)


def test_round_trip():
    model = quantized(Net())
    freeze(model)
    config = QConfig.from_dict(
        dict(activation=dict(per_channel=True), edge_bits=None)
    )
    recipe = dict(qconfig=config.to_dict())
    payload = pack_model(model, recipe=recipe, meta={})
    fresh = Net().eval()
    prepare(fresh, config)
    unpack_model(payload, fresh)
    x = batches()[0]
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


def test_per_channel_is_for_inputs_of_layers_only():
    config = dict(attention=dict(per_channel=True))
    with pytest.raises(ValueError, match=r'per_channel=True.*per_head'):
        QConfig.from_dict(config)
    config = dict(activation=dict(per_channel=True))
    scheme = QConfig.from_dict(config).scheme('any')
    assert scheme.activation.per_channel
    assert not scheme.query.per_channel
    assert not scheme.softmax.per_channel


@pytest.mark.parametrize('kind', [nn.Conv1d, nn.ConvTranspose1d])
@pytest.mark.parametrize('alone', [False, True])
def test_a_signal_is_an_image_of_one_row(kind, alone):
    """(B, C, L) or (C, L): same scales, same values as (B, C, 1, L)."""
    signal = torch.randn(CHANNELS, CHANNELS) * torch.logspace(-2, 1, CHANNELS)
    signal = signal.T if alone else signal.T[None]
    twin = nn.Conv2d if kind is nn.Conv1d else nn.ConvTranspose2d
    line = kind(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
    row = twin(CHANNELS, CHANNELS, (1, 3), padding=(0, 1), groups=CHANNELS)
    with torch.no_grad():
        row.weight.copy_(line.weight[:, :, None])
        row.bias.copy_(line.bias)
    found = []
    for layer, x in ((line, signal), (row, signal.unsqueeze(-2))):
        model = nn.Sequential(layer).eval()
        config = dict(activation=dict(per_channel=True), edge_bits=None)
        prepare(model, QConfig.from_dict(config))
        calibrate(model, [x], forward=run)
        freeze(model)
        with torch.no_grad():
            found.append((model(x), model[0].input_quantizer.scale))
    (out, scale), (expected, expected_scale) = found
    assert scale.shape == (CHANNELS,)
    assert torch.equal(scale, expected_scale)
    assert torch.allclose(out, expected.squeeze(-2), atol=1e-5)


@pytest.mark.parametrize('observer', ['MinMaxObserver', 'MSEObserver'])
def test_an_image_alone(observer):
    """(C, H, W) with H = C, where the wrong axis would raise nothing."""
    image = torch.randn(CHANNELS, CHANNELS, 5)
    image *= torch.logspace(-2, 1, CHANNELS)[:, None, None]
    found = []
    for x in (image, image[None]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS)
        )
        config = dict(
            activation=dict(per_channel=True, observer=dict(type=observer)),
            edge_bits=None,
        )
        prepare(model.eval(), QConfig.from_dict(config))
        calibrate(model, [x], forward=run)
        freeze(model)
        with torch.no_grad():
            found.append((model(x), model[0].input_quantizer.scale))
    (alone, scale), (batched, expected) = found
    assert torch.equal(scale, expected)
    assert torch.equal(alone, batched[0])


def test_scales_of_channels_are_learned():
    model = Net()
    with torch.no_grad():
        expected = [model(batch) for batch in batches()]
    config = dict(
        weight=dict(num_bits=3, symmetric=False),
        activation=dict(type='LSQQuantizer', num_bits=4, per_channel=True),
        edge_bits=None,
    )
    prepare(model.eval(), QConfig.from_dict(config))
    calibrate(model, batches(), forward=run)

    def error():
        with quantizing(model), torch.no_grad():
            return sum(
                float((model(batch) - out).square().sum())
                for batch, out in zip(batches(), expected, strict=True)
            )

    before, scale = error(), model.depthwise.input_quantizer.scale.clone()
    settings = dict(steps=100, batch_size=4, skip_below=0.0, drop_prob=0.5)
    reconstruct(
        model,
        batches(),
        ReconstructionConfig.from_dict(settings),
        forward=run,
        progress=False,
    )
    freeze(model)
    learned = model.depthwise.input_quantizer.scale
    assert learned.shape == scale.shape
    assert (learned != scale).all()
    assert (learned > 0).all()
    assert error() < before
