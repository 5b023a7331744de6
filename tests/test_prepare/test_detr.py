"""The five DETR types of mmdet: grids per head, aligned queries, D."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmengine')
pytest.importorskip('mmdet')

import mmdet
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from taskptq.calibration import calibrate
from taskptq.core import float_only, quantizing, transforming
from taskptq.core.switches import quantizers
from taskptq.export import pack_model, unpack_model
from taskptq.methods.qdetr.alignment import AlignedQuantizer, standardize
from taskptq.modules import AttendedTap
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import freeze

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
# Config, and the decoder's attentions whose queries meet keys.
MODELS_OF = {
    'detr': ('detr/detr_r50_8xb2-150e_coco.py', 'both'),
    'conditional': (
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'both',
    ),
    'dab': ('dab_detr/dab-detr_r50_8xb2-50e_coco.py', 'both'),
    'deformable': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'self',
    ),
    'dino': ('dino/dino-4scale_r50_8xb2-12e_coco.py', 'self'),
}
DECODER = r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?'
QCONFIG = {
    'weight': {'num_bits': 4},
    'activation': {'type': 'LSQQuantizer', 'num_bits': 4},
    'attention': {
        'num_bits': 8,
        'per_head': True,
        'observer': {'type': 'MSEObserver'},
    },
    'softmax': {'num_bits': 8, 'per_head': True},
    'overrides': [{'pattern': DECODER, 'query': {'type': 'AlignedQuantizer'}}],
}
SIZE, QUERIES, LAYERS = 64, 10, 2

pytestmark = pytest.mark.slow


def build(name: str) -> nn.Module:
    """Build the official structure: fewer layers, narrow where it may be."""
    cfg = Config.fromfile(CONFIGS / MODELS_OF[name][0])
    model = cfg.model
    levels = len(model.backbone.out_indices)
    model.backbone = dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        norm_eval=True,
        out_indices=(1, 2, 3)[-levels:],
        norm_cfg=dict(type='BN'),
    )
    model.neck.in_channels = [16, 32, 64][-levels:]
    model.num_queries = QUERIES
    model.encoder.num_layers, model.decoder.num_layers = 1, LAYERS
    for part in (model.encoder, model.decoder):
        part.layer_cfg.ffn_cfg.feedforward_channels = 32
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
        detector.init_weights()
    return detector.eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, 3, SIZE, SIZE, generator=generator) for _ in range(2)
    ]


def heads(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return class logits and boxes of all layers."""
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE)
            )
        )
        for _ in images
    ]
    outputs = model(images, samples, mode='tensor')
    return outputs[0], outputs[1]


@pytest.fixture(scope='module', params=MODELS_OF)
def case(request: Any) -> tuple:
    """A float model and its prepared and calibrated counterpart."""
    model = build(request.param)
    quant = copy.deepcopy(model)
    prepare(quant, QConfig.from_dict(QCONFIG))
    calibrate(quant, batches(), forward=heads)
    return request.param, model, quant


def aligners(model: nn.Module) -> dict[str, AlignedQuantizer]:
    return {
        name: quantizer
        for name, quantizer in quantizers(model)
        if isinstance(quantizer, AlignedQuantizer)
    }


@torch.no_grad()
def test_off_is_the_float_detector(case: tuple) -> None:
    _, model, quant = case
    images = batches()[0]
    with float_only(quant):
        found = heads(quant, images)
    for ours, theirs in zip(found, heads(model, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_decoder_queries_are_aligned(case: tuple) -> None:
    name, _, quant = case
    found = aligners(quant)
    kinds = {'self', 'cross'} if MODELS_OF[name][1] == 'both' else {'self'}
    assert len(found) == LAYERS * len(kinds)
    seen = {}
    handles = []
    for path, quantizer in found.items():
        assert path.split('.')[3] in {f'{kind}_attn' for kind in kinds}
        handles.append(
            quantizer.register_forward_hook(
                lambda q, args, out, path=path: seen.update(
                    {path: (q, args[0], out)}
                )
            )
        )
    with transforming(quant):
        heads(quant, batches()[0])
    for handle in handles:
        handle.remove()
    assert seen.keys() == found.keys()
    for quantizer, x, out in seen.values():
        assert quantizer.gamma.shape == (8, x.shape[-1])
        assert quantizer.scale.shape == (8,)
        z = standardize(x, eps=quantizer.eps)
        torch.testing.assert_close(
            out, quantizer.gamma[:, None] * z + quantizer.beta[:, None]
        )


@torch.no_grad()
def test_alignment_starts_near_the_float_model(case: tuple) -> None:
    """Nearer than with the statistics of the queries as gamma and beta."""
    _, _, quant = case
    found = aligners(quant)
    seen: dict[str, list[Tensor]] = {path: [] for path in found}
    handles = [
        quantizer.register_forward_pre_hook(
            lambda _, args, path=path: seen[path].append(args[0])
        )
        for path, quantizer in found.items()
    ]
    with float_only(quant):
        for images in batches():
            heads(quant, images)
    for handle in handles:
        handle.remove()
    for path, quantizer in found.items():
        x = torch.cat(seen[path])
        z = standardize(x, eps=quantizer.eps)
        std, mean = x.std((0, 2), correction=0), x.mean((0, 2))
        zeros = torch.zeros_like(mean)
        best, *others = (
            float((gamma[:, None] * z + beta[:, None] - x).norm())
            for gamma, beta in (
                (quantizer.gamma, quantizer.beta),
                (std, zeros),
                (std, mean),
                (torch.ones_like(std), zeros),
            )
        )
        # Slack for float32: a first layer's queries are constant in all.
        assert best <= min(others) + 1e-5 * float(x.norm())


@torch.no_grad()
def test_attended_features_of_every_decoder_layer(case: tuple) -> None:
    _, _, quant = case
    seen: dict[str, Tensor] = {}
    taps = {
        name: module
        for name, module in quant.named_modules()
        if isinstance(module, AttendedTap) and name.startswith('decoder')
    }
    assert len(taps) == 2 * LAYERS
    handles = [
        tap.register_forward_hook(
            lambda _m, _a, out, name=name: seen.update({name: out})
        )
        for name, tap in taps.items()
    ]
    found = []
    for context in (float_only, quantizing):
        with context(quant):
            heads(quant, batches()[0])
        found.append(dict(seen))
        assert seen.keys() == taps.keys()
        assert all(d.shape == (2, QUERIES, 256) for d in seen.values())
    for handle in handles:
        handle.remove()
    assert any(
        not torch.equal(found[0][name], found[1][name]) for name in taps
    )


@torch.no_grad()
def test_quantized_file_restores_alignment_and_heads(case: tuple) -> None:
    _, model, quant = case
    quant = copy.deepcopy(quant)
    report = freeze(quant)
    assert report.num_activations
    payload = pack_model(quant, recipe=QCONFIG, meta={})
    assert not any('attended' in key for key in payload['float'])
    fresh = copy.deepcopy(model)
    prepare(fresh, QConfig.from_dict(QCONFIG))
    unpack_model(payload, fresh)
    images = batches()[1]
    for ours, theirs in zip(
        heads(fresh, images), heads(quant, images), strict=True
    ):
        assert torch.equal(ours, theirs)
    for path, quantizer in aligners(quant).items():
        assert torch.equal(
            fresh.get_parameter(f'{path}.gamma'), quantizer.gamma
        )
        assert torch.equal(fresh.get_parameter(f'{path}.beta'), quantizer.beta)
