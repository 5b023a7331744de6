"""Shifted and scaled norms: the output stays, the readers' error falls."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.methods.outlier_suppression import rewrite as module
from taskptq.methods.outlier_suppression.norm_groups import find_norm_groups
from taskptq.methods.outlier_suppression.rewrite import (
    ChannelShiftScale,
    folded_norm,
    folded_reader,
    threshold_scales,
)
from taskptq.prepare import QConfig
from taskptq.testing import TinyWindowAttention

from ..conftest import randomized, stats_of  # isort: skip

X = torch.tensor([[10, -1, 2], [12, 1, 1], [11, 0, -2], [14, -3, 0.0]])
W = torch.tensor([[1, 2, -1], [0.5, -1, 3]])
B = torch.tensor([0.25, -1])
Y = torch.tensor([[6.25, 11], [13.25, 7], [13.25, -1.5], [8.25, 9]])


@pytest.mark.parametrize(
    ('threshold', 'scale', 'row'),
    [
        (2.0, 1.0, [1, 2, -1]),
        (1.5, 4 / 3, [4 / 3, 8 / 3, -4 / 3]),
        (1.0, 2.0, [2, 4, -2]),
    ],
)
def test_thresholds(threshold, scale, row):
    shift = (X.amax(dim=0) + X.amin(dim=0)) / 2
    assert shift.tolist() == [12, -1, 0]
    peaks = (X - shift).abs().amax(dim=0)
    scales = threshold_scales(peaks, threshold)
    assert scales.tolist() == pytest.approx([scale] * 3)
    weight, returned = folded_reader(W, scales=scales, shift=shift)
    assert weight[0].tolist() == pytest.approx(row)
    assert (B + returned).tolist() == [10.25, 6]
    moved = ((X - shift) / scales).double()
    torch.testing.assert_close(
        (moved @ weight.T + B + returned).float(), Y, rtol=0, atol=1e-6
    )


def test_folded_norm():
    gamma = torch.tensor([2, 1, 0.5])
    beta = torch.tensor([1, -2, 0.25])
    normalized = torch.tensor([0.3, -1.2, 0.9])
    scales = torch.tensor([1, 1.5, 4])
    shift = torch.tensor([0.5, -1, 2])
    weight, bias = folded_norm(gamma, beta, scales=scales, shift=shift)
    assert (weight * normalized + bias).tolist() == pytest.approx(
        [1.1, -1.466667, -0.325], abs=1e-6
    )


def test_kernels_return_the_shift_at_each_tap():
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    shift = torch.tensor([6.0, -1.0]).double()
    _, returned = folded_reader(
        weight,
        scales=torch.ones(2, 1, 1),
        shift=shift[:, None, None],
    )
    x = shift[None, :, None, None].expand(1, 2, 2, 2)
    torch.testing.assert_close(returned, F.conv2d(x, weight).flatten())


def test_zero_padding_needs_another_value():
    """Why a padding reader gets no shift: zeros mean z, not 0, then."""
    kernel = torch.tensor([[[1.0, 2, -1]]]).double()
    x = torch.tensor([[[5.0, 6, 7, 6]]]).double()
    shift = torch.tensor([[6.0]]).double()
    _, returned = folded_reader(
        kernel, scales=torch.ones(1, 1), shift=shift[..., None]
    )
    assert returned.tolist() == [12]
    expected = F.conv1d(x, kernel, padding=1).flatten().tolist()
    assert expected == [4, 10, 14, 19]
    zeros = F.conv1d(x - shift, kernel, returned, padding=1)
    assert zeros.flatten().tolist() == [10, 10, 14, 13]
    right = F.pad(x - shift, (1, 1), value=-6.0)
    assert F.conv1d(right, kernel, returned).flatten().tolist() == expected


class Reduced(nn.Module):
    """Attention over a map whose keys and values come from a smaller one."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.inner = nn.LayerNorm(16)
        self.reduce = nn.Conv2d(16, 16, 2, stride=2)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        y = self.norm1(tokens)
        small = self.reduce(y.transpose(1, 2).reshape(x.shape))
        small = self.inner(small.flatten(2).transpose(1, 2))
        tokens = tokens + self.attn(y, small, small)[0]
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class Windows(nn.Module):
    """A Swin block: windows of a map that is padded to their multiple."""

    def __init__(self, size=4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = TinyWindowAttention(
            16, num_heads=2, window_size=(size, size)
        )
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.size = size

    def forward(self, x):
        batch, height, width, channels = x.shape
        size = self.size
        y = self.norm1(x)
        y = F.pad(y, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = y.shape[1] // size, y.shape[2] // size
        y = y.view(batch, rows, size, columns, size, channels)
        y = y.transpose(2, 3).reshape(-1, size * size, channels)
        y = self.attn(y).view(batch, rows, columns, size, size, channels)
        y = y.transpose(2, 3).reshape(
            batch, rows * size, columns * size, channels
        )
        x = x + y[:, :height, :width]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def uneven(model, seed=0):
    """Give norms wide and off-center channels, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    randomized(model, seed=seed)
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, nn.LayerNorm):
                width = torch.randn(one.weight.shape, generator=generator)
                one.weight.copy_((0.7 * width).exp())
                one.bias.normal_(std=2, generator=generator)
    return model.double()


def stats_for(*batches, bits=4):
    qconfig = QConfig.from_dict(
        {
            'weight': {'num_bits': bits},
            'activation': {'num_bits': bits},
            'edge_bits': None,
        }
    )
    stats = stats_of(*((batch,) for batch in batches))
    return SimpleNamespace(
        batches=stats.batches, forward=stats.forward, qconfig=qconfig
    )


def data(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).double()


def relative(before, after):
    return float((after - before).abs().max() / before.abs().max())


def test_reduced_attention_stays_exact():
    model = uneven(Reduced())
    x = data(2, 16, 4, 4)
    expected = model(x).detach()
    report = ChannelShiftScale()(model, stats_for(x))
    assert [(entry.name, entry.status) for entry in report.entries] == [
        ('attn:query, reduce', 'applied'),
        ('fc1', 'applied'),
        ('attn:key, attn:value', 'applied'),
    ]
    for entry in report.entries:
        assert entry.details['shifted']
        assert entry.details['error_after'] < entry.details['error_before']
    assert relative(expected, model(x).detach()) < 1e-12


@pytest.mark.parametrize('size', [12, 13])
def test_windows_pad_what_zero_becomes(size):
    """13 tokens in windows of 4 are padded; 12 are not, other images are."""
    model = uneven(nn.Sequential(Windows()))
    x, other = data(1, size, size, 16), data(1, 11, 14, 16)
    expected = [model(x).detach(), model(other).detach()]
    outline = copy.deepcopy(model)
    report = ChannelShiftScale()(model, stats_for(x))
    windows, mlp = report.entries
    assert windows.status == mlp.status == 'applied'
    assert windows.details['shifted']
    assert mlp.details['shifted']
    assert model[0].channel_pad_value.abs().min() > 0
    for image, before in zip((x, other), expected, strict=True):
        assert relative(before, model(image).detach()) < 1e-12
    # A copy, and a model that a file makes again, pad the same.
    assert report.structure == {'paddings': {'0': 16}}
    ChannelShiftScale.replay(outline, report.structure)
    outline.load_state_dict(model.state_dict())
    for copied in (outline, copy.deepcopy(model)):
        assert torch.equal(copied(other), model(other))


def test_zeros_stay_zeros_without_a_shift():
    model = uneven(nn.Sequential(Windows()))
    x = data(1, 13, 13, 16)
    report = ChannelShiftScale(shift=False)(model, stats_for(x))
    assert report.structure == {}
    assert not any('pad' in name for name in model.state_dict())


def unseen_padding(model, stats):
    groups = find_norm_groups(
        model, lambda: stats.forward(model, stats.batches[0])
    )
    return [replace(group, between='', padders=()) for group in groups]


def test_padding_that_was_not_seen_is_verified(monkeypatch):
    """Only the comparison can notice: the shift goes, the scale stays."""
    model = uneven(Windows())
    monkeypatch.setattr(module, '_find', unseen_padding)
    x = data(1, 13, 13, 16)
    expected = model(x).detach()
    report = ChannelShiftScale()(model, stats_for(x))
    windows, mlp = report.entries
    assert windows.status == mlp.status == 'applied'
    assert windows.details['no_shift'] == 'it changed an output'
    assert not windows.details['shifted']
    assert mlp.details['shifted']
    assert relative(expected, model(x).detach()) < 1e-12


def test_shift_alone_and_scale_alone():
    x = data(2, 16, 4, 4)
    for shift, scale in ((True, False), (False, True)):
        model = uneven(Reduced())
        report = ChannelShiftScale(shift=shift, scale=scale)(
            model, stats_for(x)
        )
        applied = [e for e in report.entries if e.status == 'applied']
        assert applied
        for entry in applied:
            assert entry.details['shifted'] is shift
            assert (entry.details['scales'][1] > 1) is scale


def test_patterns_choose():
    model = uneven(Reduced())
    x = data(2, 16, 4, 4)
    report = ChannelShiftScale(patterns=['norm2'])(model, stats_for(x))
    assert [entry.name for entry in report.entries] == ['fc1']
    with pytest.raises(ValueError, match="pattern 'neck' matches no"):
        ChannelShiftScale(patterns=['neck'])(model, stats_for(x))


def test_readers_left_float_are_skipped():
    model = uneven(Reduced())
    x = data(2, 16, 4, 4)
    stats = stats_for(x)
    stats.qconfig = QConfig.from_dict({'keep_float': ['fc1']})
    report = ChannelShiftScale(patterns=['norm2'])(model, stats)
    assert report.entries[0].status == 'skipped'
    assert report.entries[0].reason == 'none of its readers is quantized'


def test_no_data():
    with pytest.raises(ValueError, match='calibration set is empty'):
        ChannelShiftScale()(Reduced(), stats_of())


@pytest.mark.parametrize('size', [13, 14])
def test_swin_block(size):
    swin = pytest.importorskip('mmdet.models.backbones.swin')
    block = swin.SwinBlock(
        embed_dims=16, num_heads=2, feedforward_channels=32, window_size=7
    )
    model = uneven(nn.ModuleDict({'block': block}))
    x = data(1, size * size, 16)
    expected = block(x, (size, size)).detach()
    stats = stats_for(x)
    stats.forward = lambda m, batch: m['block'](batch[0], (size, size))
    report = ChannelShiftScale()(model, stats)
    assert [one.details['shifted'] for one in report.entries] == [True, True]
    assert report.structure == {'paddings': {'block.attn': 16}}
    assert relative(expected, block(x, (size, size)).detach()) < 1e-12


def test_segment_anything_block():
    sam = pytest.importorskip('segment_anything.modeling.image_encoder')
    block = sam.Block(
        16, 2, window_size=4, use_rel_pos=True, input_size=(6, 6)
    )
    model = uneven(nn.Sequential(block)).eval()
    x = data(1, 6, 6, 16)
    expected = model(x).detach()
    report = ChannelShiftScale()(model, stats_for(x))
    assert report.structure == {'paddings': {'0': 16}}
    assert relative(expected, model(x).detach()) < 1e-12


def test_a_file_restores_what_is_padded(tmp_path):
    pytest.importorskip('mmengine')
    from taskptq.engine.pipeline import quantize_model
    from taskptq.engine.recipe import Recipe
    from taskptq.engine.restore import restore_model
    from taskptq.export.checkpoint import load

    model = uneven(nn.Sequential(Windows(), nn.Linear(16, 2))).float().eval()
    fresh = nn.Sequential(Windows(), nn.Linear(16, 2)).eval()
    x, other = data(1, 13, 13, 16).float(), data(1, 11, 14, 16).float()
    recipe = Recipe.from_config(
        {'edge_bits': None}, rewrites=[{'type': 'ChannelShiftScale'}]
    )
    quantize_model(model, [x], recipe=recipe, work_dir=tmp_path)
    restore_model(load(tmp_path / 'quantized.pth'), fresh)
    assert fresh[0].channel_pad_value.abs().min() > 0
    with torch.no_grad():
        assert torch.equal(fresh(other), model(other))
