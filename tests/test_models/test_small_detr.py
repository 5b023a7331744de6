"""The small DETRs: any width, configs that build, train and test."""

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = (
    'conditional_detr/conditional-detr_r18-half_bccd.py',
    'deformable_detr/deformable-detr_r18-half_bccd.py',
)


def load(name):
    from mmengine.config import Config

    return Config.fromfile(ROOT / 'configs' / name)


def decoder_config(width):
    attention = dict(embed_dims=width, num_heads=8)
    return dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(attention, cross_attn=False),
            cross_attn_cfg=dict(attention, cross_attn=True),
            ffn_cfg=dict(embed_dims=width, feedforward_channels=32),
        ),
    )


def decoder_inputs(width):
    return dict(
        query=torch.randn(2, 5, width),
        key=torch.randn(2, 7, width),
        query_pos=torch.randn(2, 5, width),
        key_pos=torch.randn(2, 7, width),
        key_padding_mask=torch.tensor([[False] * 7, [False] * 4 + [True] * 3]),
    )


@pytest.mark.parametrize('every_layer', [True, False])
def test_decoder_is_the_hosts_at_its_width(every_layer):
    from mmdet.models.layers import ConditionalDetrTransformerDecoder

    from taskptq.models.small_detr import SmallConditionalDecoder

    config = dict(decoder_config(256), return_intermediate=every_layer)
    host = ConditionalDetrTransformerDecoder(**config).eval()
    own = SmallConditionalDecoder(**config).eval()
    own.load_state_dict(host.state_dict(), strict=True)
    inputs = decoder_inputs(256)
    for ours, theirs in zip(own(**inputs), host(**inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('width', [32, 128])
def test_decoder_works_at_any_width(width):
    from taskptq.models.small_detr import SmallConditionalDecoder

    decoder = SmallConditionalDecoder(**decoder_config(width))
    states, references = decoder(**decoder_inputs(width))
    assert states.shape == (2, 2, 5, width)
    assert references.shape == (2, 5, 2)
    assert ((references > 0) & (references < 1)).all()
    states.square().mean().backward()
    gradient = decoder.ref_point_head.layers[0].weight.grad
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_a_small_model(name, host_scope):
    from taskptq.apis import build_model

    cfg = load(name)
    model = build_model(cfg)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6
    assert cfg.model.backbone.init_cfg is None
    assert model.bbox_head.num_classes == len(cfg.metainfo.classes)
    assert model.embed_dims == model.bbox_head.embed_dims == 128
    assert [len(model.encoder.layers), len(model.decoder.layers)] == [2, 3]
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        scales = [
            step.scale
            for step in loader.dataset.pipeline
            if step.type == 'Resize'
        ]
        assert scales == [(256, 192)]


def shorten(cfg, work_dir):
    """Two training iterations, one image to validate, one to test."""
    for name, count in (('train', 4), ('val', 1), ('test', 1)):
        loader = cfg[f'{name}_dataloader']
        loader.dataset.indices = count
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.update(checkpoint=None)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'WARNING'


@pytest.mark.slow
@pytest.mark.data('bccd')
@pytest.mark.parametrize('name', CONFIGS)
def test_config_trains_and_tests(name, tmp_path, monkeypatch, host_scope):
    from mmengine.runner import Runner

    monkeypatch.chdir(ROOT)
    cfg = load(name)
    shorten(cfg, tmp_path)
    runner = Runner.from_cfg(cfg)
    before = {
        n: p.detach().clone() for n, p in runner.model.named_parameters()
    }
    runner.train()
    assert runner.iter == 2
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    moved = [
        n
        for n, p in runner.model.named_parameters()
        if not torch.equal(p, before[n])
    ]
    assert {'query_embedding.weight', 'backbone.conv1.weight'} <= set(moved)
    assert 0 <= runner.test()['coco/bbox_mAP'] <= 1
