"""The tap of co-attended features, and grids per head, in every attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.core import LSQQuantizer, MSEObserver, quantizing
from taskptq.core.switches import quantizers
from taskptq.modules import (
    AttendedTap,
    QuantConditionalAttention,
    QuantMultiheadAttention,
    QuantMultiScaleDeformableAttention,
    QuantSamDecoderAttention,
    QuantSamEncoderAttention,
    QuantWindowMSA,
    counterpart_class,
)
from taskptq.testing import (
    TinyRelativeAttention,
    TinyTokenAttention,
    TinyWindowAttention,
)

EMBED, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 5, 6


def multihead(*, batch_first):
    module = nn.MultiheadAttention(EMBED, HEADS, batch_first=batch_first)
    q, k = torch.randn(BATCH, QUERIES, EMBED), torch.randn(BATCH, KEYS, EMBED)
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    return module, 'out_proj', (q, k, k + 1), {}, (BATCH, QUERIES, EMBED)


def conditional(*, cross):
    host = pytest.importorskip('mmdet.models.layers.transformer.utils')
    module = host.ConditionalAttention(EMBED, HEADS, cross_attn=cross)
    query, query_pos, sine = torch.randn(3, BATCH, QUERIES, EMBED)
    key, key_pos = torch.randn(2, BATCH, KEYS, EMBED)
    kwargs = {'query_pos': query_pos, 'ref_sine_embed': sine}
    kwargs |= (
        {'key': key, 'key_pos': key_pos}
        if cross
        else {'key': query, 'key_pos': query_pos}
    )
    shape = (BATCH, QUERIES, EMBED)
    return module, 'out_proj', (query,), kwargs, shape


def window(*, masked):
    module = TinyWindowAttention(EMBED, num_heads=HEADS, window_size=(2, 3))
    mask = torch.randn(2, 6, 6) if masked else None
    x = torch.randn(4, 6, EMBED)
    return module, 'proj', (x, mask), {}, x.shape


def sam_encoder():
    module = TinyRelativeAttention(EMBED, num_heads=HEADS, size=(3, 2))
    x = torch.randn(BATCH, 3, 2, EMBED)
    return module, 'proj', (x,), {}, (BATCH, 6, EMBED)


def sam_decoder():
    module = TinyTokenAttention(EMBED, num_heads=HEADS, inner_channels=EMBED)
    q, k = torch.randn(BATCH, QUERIES, EMBED), torch.randn(BATCH, KEYS, EMBED)
    return module, 'out_proj', (q, k, k), {}, q.shape


def deformable(*, batch_first):
    host = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
    module = host.MultiScaleDeformableAttention(
        EMBED,
        HEADS,
        num_levels=1,
        num_points=3,
        dropout=0.0,
        batch_first=batch_first,
    )
    nn.init.normal_(module.attention_weights.weight)
    query = torch.randn(BATCH, QUERIES, EMBED)
    value = torch.randn(BATCH, KEYS, EMBED)
    if not batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    kwargs = {
        'value': value,
        'reference_points': torch.rand(BATCH, QUERIES, 1, 2),
        'spatial_shapes': torch.tensor([[2, 3]]),
        'level_start_index': torch.tensor([0]),
    }
    shape = (BATCH, QUERIES, EMBED)
    return module, 'output_proj', (query,), kwargs, shape


IMPLEMENTATIONS = {
    multihead: QuantMultiheadAttention,
    conditional: QuantConditionalAttention,
    window: QuantWindowMSA,
    sam_encoder: QuantSamEncoderAttention,
    sam_decoder: QuantSamDecoderAttention,
    deformable: QuantMultiScaleDeformableAttention,
}
CASES = {
    'multihead': (multihead, {'batch_first': False}),
    'multihead-batch-first': (multihead, {'batch_first': True}),
    'conditional-self': (conditional, {'cross': False}),
    'conditional-cross': (conditional, {'cross': True}),
    'window': (window, {'masked': False}),
    'window-masked': (window, {'masked': True}),
    'sam-encoder': (sam_encoder, {}),
    'sam-decoder': (sam_decoder, {}),
    'deformable': (deformable, {'batch_first': False}),
    'deformable-batch-first': (deformable, {'batch_first': True}),
}


class Case:
    """A float attention, its counterpart, and how to run both."""

    def __init__(self, name, lab, **scheme):
        build, kwargs = CASES[name]
        self.module, self.out, args, kwargs, self.shape = build(**kwargs)
        self.module.eval()
        self.run = lambda m: m(*args, **kwargs)
        self.expected = self.first(self.run(self.module))
        self.keys = set(self.module.state_dict())
        self.children = {name for name, _ in self.module.named_modules()}
        cls = counterpart_class(IMPLEMENTATIONS[build], type(self.module))
        scheme = lab.scheme(**scheme)
        self.quant = lab.swap_linears(
            cls.from_float(self.module, scheme=scheme), scheme
        )

    @staticmethod
    def first(output):
        return output[0] if isinstance(output, tuple) else output

    def attended(self):
        """Return D, and what the last projection read."""
        seen = {}
        projection = getattr(self.quant, self.out)
        handles = [
            self.quant.attended.register_forward_hook(
                lambda _m, _a, out: seen.update(tap=out)
            ),
            projection.register_forward_pre_hook(
                lambda _m, args: seen.update(read=args[0])
            ),
        ]
        output = self.first(self.run(self.quant))
        for handle in handles:
            handle.remove()
        return seen['tap'], seen['read'], output


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def test_the_tap_sees_what_the_out_projection_reads(name, lab):
    case = Case(name, lab)
    assert isinstance(case.quant.attended, AttendedTap)
    lab.calibrate(case.quant, case.run)
    found = {}
    for mode in ('float', 'quantized'):
        with quantizing(
            case.quant,
            weights=mode == 'quantized',
            activations=mode == 'quantized',
        ):
            tap, read, _ = case.attended()
        assert tap.shape == case.shape
        if mode == 'float' and read.shape[:1] == tap.shape[:1]:
            assert torch.equal(tap.reshape(read.shape), read)
        elif mode == 'float':
            assert torch.equal(tap.transpose(0, 1), read)
        found[mode] = tap
    assert not torch.equal(found['float'], found['quantized'])
    error = (found['quantized'] - found['float']).abs().max()
    assert error < 0.5 * found['float'].abs().max()


def test_the_tap_leaves_no_trace(name, lab):
    case = Case(name, lab)
    new = {key for key in case.quant.state_dict() if 'quantizer' not in key}
    assert new == case.keys
    assert not any('attended' in name for name, _ in quantizers(case.quant))
    assert 'attended' not in case.children
    assert not list(case.quant.attended.parameters())


def test_grids_per_head(name, lab):
    case = Case(name, lab, per_head=True, observer=MSEObserver)
    torch.testing.assert_close(
        case.first(case.run(case.quant)), case.expected, rtol=1e-5, atol=1e-6
    )
    lab.calibrate(case.quant, case.run)
    operands = {
        path: quantizer
        for path, quantizer in quantizers(case.quant)
        if path
        in (
            'query_quantizer',
            'key_quantizer',
            'value_quantizer',
            'softmax_quantizer',
        )
    }
    assert len(operands) == (2 if 'deformable' in name else 4)
    for quantizer in operands.values():
        assert quantizer.scale.shape == (HEADS,)
        assert quantizer.scale[0] != quantizer.scale[1]
    with quantizing(case.quant):
        output = case.first(case.run(case.quant))
    error = (output - case.expected).abs().max()
    assert 0 < error < 0.5 * case.expected.abs().max()


def test_grids_per_head_learn(name, lab):
    case = Case(name, lab, per_head=True, quantizer=LSQQuantizer)
    lab.calibrate(case.quant, case.run)
    quantizer = case.quant.value_quantizer
    quantizer.scale.requires_grad_(True)
    with quantizing(case.quant):
        case.first(case.run(case.quant)).square().sum().backward()
    assert quantizer.scale.grad.abs().min() > 0


@pytest.mark.parametrize('batch_first', [False, True])
def test_attended_is_attention_times_value(batch_first, lab):
    module, _, (q, k, v), _, _ = multihead(batch_first=batch_first)
    module.eval()
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3)
    heads = [
        F.linear(x, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for x, w, b in zip((q, k, v), weights, biases, strict=True)
    ]
    expected = F.scaled_dot_product_attention(*heads)
    expected = expected.transpose(1, 2).flatten(2)
    scheme = lab.scheme()
    quant = QuantMultiheadAttention.from_float(module, scheme=scheme)
    seen = []
    quant.attended.register_forward_hook(lambda _m, _a, out: seen.append(out))
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    quant(q, k, v)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-6)
