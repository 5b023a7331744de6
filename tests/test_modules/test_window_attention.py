import copy

import pytest
import torch
from torch import nn

from taskptq.core import enable, quantizing
from taskptq.modules import QuantWindowMSA, counterpart_class
from taskptq.testing import TinyWindowAttention

EMBED, HEADS, WINDOW = 8, 2, (3, 4)
TOKENS = WINDOW[0] * WINDOW[1]
POINTS = {
    'query_quantizer',
    'key_quantizer',
    'value_quantizer',
    'softmax_quantizer',
    'qkv.input_quantizer',
    'qkv.weight_quantizer',
    'proj.input_quantizer',
    'proj.weight_quantizer',
}


def build_tiny():
    return TinyWindowAttention(EMBED, num_heads=HEADS, window_size=WINDOW)


def build_host(package, **kwargs):
    swin = pytest.importorskip(f'{package}.models.backbones.swin')
    module = swin.WindowMSA(EMBED, HEADS, WINDOW, **kwargs)
    nn.init.normal_(module.relative_position_bias_table)
    return module


BUILDERS = {
    'tiny': build_tiny,
    'mmdet': lambda: build_host('mmdet'),
    'mmseg': lambda: build_host('mmseg'),
    'mmdet_no_bias': lambda: build_host('mmdet', qkv_bias=False, qk_scale=0.7),
}


@pytest.fixture(params=BUILDERS)
def module(request):
    return BUILDERS[request.param]().eval()


def quantize(module, lab):
    cls = counterpart_class(QuantWindowMSA, type(module))
    quant = cls.from_float(module, scheme=lab.scheme())
    return lab.swap_linears(quant, lab.scheme())


def shift_mask():
    """Return two windows' masks, as shifted windows have them."""
    groups = torch.randint(0, 2, (2, TOKENS))
    return (groups[:, :, None] != groups[:, None]).float() * -100


@pytest.mark.parametrize('masked', [True, False])
def test_off_equals_float(module, masked, lab):
    x = torch.randn(6, TOKENS, EMBED)
    mask = shift_mask() if masked else None
    expected = module(x, mask)
    quant = quantize(module, lab)
    assert isinstance(quant, type(module))
    torch.testing.assert_close(quant(x, mask), expected, rtol=1e-5, atol=1e-6)


def test_dropouts_as_the_float_ones(lab):
    module = build_host('mmdet', attn_drop_rate=0.5).train()
    x = torch.randn(2, TOKENS, EMBED)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    out = quantize(module, lab)(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('masked', [True, False])
def test_every_point_fires_once(module, masked, lab):
    x = torch.randn(6, TOKENS, EMBED)
    mask = shift_mask() if masked else None
    quant = quantize(module, lab)
    lab.calibrate(quant, lambda m: m(x, mask))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(x, mask))
        assert not torch.equal(quant(x, mask), module(x, mask))
    assert counts == dict.fromkeys(POINTS, 1)


def test_masked_pairs_stay_apart(lab):
    module = build_tiny()
    quant = quantize(module, lab)
    mask = torch.zeros(1, TOKENS, TOKENS)
    mask[:, :6, 6:] = mask[:, 6:, :6] = float('-inf')
    x = torch.randn(2, TOKENS, EMBED)
    lab.calibrate(quant, lambda m: m(x, mask))
    other = x.clone()
    other[:, 6:] = other[:, 6:].flip(1)
    with quantizing(quant):
        assert torch.equal(quant(x, mask)[:, :6], quant(other, mask)[:, :6])


def test_gradients_flow(module, lab):
    quant = quantize(module, lab)
    x = torch.randn(4, TOKENS, EMBED, requires_grad=True)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        quant(x).square().sum().backward()
    for tensor in (
        x,
        quant.qkv.weight,
        quant.proj.weight,
        quant.relative_position_bias_table,
    ):
        assert tensor.grad.abs().sum() > 0


def test_freeze_copy_and_state_dict(module, lab):
    fresh = quantize(copy.deepcopy(module), lab)
    quant = quantize(module, lab)
    x = torch.randn(4, TOKENS, EMBED)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        before = quant(x)
    for child in (quant, quant.qkv, quant.proj):
        child.freeze()
    enable(quant)
    assert torch.equal(quant(x), before)
    assert torch.equal(copy.deepcopy(quant)(x), before)
    lab.load(fresh, quant.state_dict())
    assert torch.equal(fresh(x), before)


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_inside_shifted_windows(package, lab):
    swin = pytest.importorskip(f'{package}.models.backbones.swin')
    block = swin.ShiftWindowMSA(
        EMBED,
        HEADS,
        window_size=4,
        shift_size=2,
        dropout_layer={'type': 'DropPath', 'drop_prob': 0.0},
    ).eval()
    x = torch.randn(2, 7 * 9, EMBED)
    expected = block(x, (7, 9))
    block.w_msa = quantize(block.w_msa, lab)
    torch.testing.assert_close(
        block(x, (7, 9)), expected, rtol=1e-5, atol=1e-6
    )
