"""Configs of the project parse, build, and say what their names say."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

import sam_detector  # noqa: F401  (registers the classes)
from taskptq.engine.recipe import Recipe
from taskptq.prepare.patterns import matches
from taskptq.recipes import method_names, resolve

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / 'projects/sam_detector/configs'
LEAVES = sorted(p.name for p in CONFIGS.glob('*_ptq4sam-l-*.py'))
FLOAT = [
    f'sam-{size}_{detector}_coco.py'
    for size, detector in (
        ('b', 'faster-rcnn'),
        ('l', 'yolox-l'),
        ('b', 'deformable-detr'),
        ('h', 'dino'),
    )
]
BITS = ((8, 8), (6, 6), (4, 4), (3, 3), (2, 4))
REWRITES = {
    'ptq4sam': ['BimodalIntegration'],
    'big': ['BimodalIntegration'],
    'centering': ['AttentionCentering'],
}


@pytest.mark.parametrize(('weight', 'activation'), BITS)
@pytest.mark.parametrize('method', method_names('sam_detector'))
def test_recipe(method, weight, activation):
    parts = resolve(f'sam_detector::w{weight}a{activation}_{method}')
    assert set(parts) <= {'qconfig', 'reconstruction', 'rewrites'}
    recipe = Recipe.from_config(
        parts['qconfig'],
        reconstruction=parts.get('reconstruction'),
        rewrites=parts.get('rewrites'),
    )
    points = recipe.qconfig.points
    bits = [
        points[p]['num_bits']
        for p in ('weight', 'activation', 'attention', 'softmax')
    ]
    assert bits == [weight] + [activation] * 3
    words = method.split('-')
    assert [r['type'] for r in recipe.rewrites] == REWRITES.get(words[0], [])
    grid = points['softmax']['type'] == 'PowerOfTwoQuantizer'
    assert grid == bool({'agq', 'ptq4sam', 'hybrid'} & set(words))
    taus = points['softmax']['observer'].get('taus', [1, 2, 4])
    assert (0 in taus) == ('hybrid' in words)
    assert bool(points['softmax']['observer'].get('per_head')) == (
        'head' in words
    )
    learned = method not in ('mse', 'minmax') and words[-1] != 's'
    assert (recipe.reconstruction is not None) == learned


def test_all_rows_keep_the_same_layers_float():
    lists = {
        tuple(resolve(f'sam_detector::w4a4_{n}')['qconfig']['keep_float'])
        for n in method_names('sam_detector')
    }
    assert len(lists) == 1


def test_kept_layers_exist_with_and_without_a_detector(sam_config):
    patterns = resolve('sam_detector::w4a4_mse')['qconfig']['keep_float']
    for detector in (None, {'type': 'ResNet', 'depth': 18}):
        model = MODELS.build(
            {
                'type': 'SAMDetector',
                'sam': sam_config,
                'detector': detector,
                'prompts': ['gt_box'],
            }
        )
        names = [name for name, _ in model.named_modules()]
        kept = {
            name for name in names if any(matches(name, p) for p in patterns)
        }
        for pattern in patterns:
            assert any(matches(name, pattern) for name in names), pattern
        assert 'sam.image_encoder.patch_embed.proj' in kept
        assert 'sam.image_encoder.blocks.0.attn' not in kept
        assert ('detector.conv1' in kept) == (detector is not None)


def test_every_pair_of_the_paper_is_there():
    assert len(LEAVES) == 4 * 3 * 2


@pytest.mark.parametrize(
    'name',
    [
        'sam-b_faster-rcnn_ptq4sam-l-w6a6_calib32_coco.py',
        'sam-h_yolox-l_ptq4sam-l-w4a4_calib32_coco.py',
    ],
)
def test_leaf(name):
    from mmengine.registry import HOOKS

    cfg = Config.fromfile(CONFIGS / name)
    size, bits = re.match(r'sam-(.)_.*-w(\d)a\2_calib32', name).groups()
    assert cfg.model.sam.size == f'vit_{size}'
    assert len(cfg.custom_hooks) == 1
    hook = HOOKS.build(cfg.custom_hooks[0])
    assert hook.calibration.num_images == 32
    assert hook.recipe.qconfig.points['weight']['num_bits'] == int(bits)
    assert hook.recipe.rewrites[0]['type'] == 'BimodalIntegration'
    assert hook.recipe.reconstruction['steps'] == 2000


@pytest.mark.slow
@pytest.mark.parametrize('name', FLOAT)
def test_float_model_builds(name):
    cfg = Config.fromfile(CONFIGS / name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.sam.image_encoder.img_size == 1024
    steps = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert (
        steps.index('SAMViews')
        < steps.index('Resize')
        < steps.index('LoadAnnotations')
    )
    assert cfg.test_evaluator.metric == ['bbox', 'segm']
    assert (
        type(model.data_preprocessor.detector).__name__
        == 'DetDataPreprocessor'
    )
    assert type(model.detector).__name__ in (
        'FasterRCNN',
        'YOLOX',
        'DeformableDETR',
        'DINO',
    )


@pytest.mark.slow
@pytest.mark.data('nuclei')
def test_nuclei_end_to_end(tmp_path, monkeypatch):
    """Three images through a Runner: detector, prompts, all metrics."""
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(CONFIGS / 'sam-tiny_faster-rcnn_nuclei.py')
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = 'end_to_end'
    cfg.load_from = None
    cfg.model.test_cfg = {'max_prompts': 5}
    cfg.model.prompts = ['detector', 'gt_box', 'gt_point']
    loader = cfg.test_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.indices = 3
    points = {'type': 'PromptedMaskMetric', 'prompts': 'gt_point'}
    cfg.test_evaluator = [*cfg.test_evaluator, points]
    found = Runner.from_cfg(cfg).test()
    assert {
        'coco/bbox_mAP',
        'coco/segm_mAP',
        'gt_box/segm_mAP',
        'gt_box/miou',
        'detector/matched_miou',
        'gt_point/miou',
    } <= set(found)
    assert 0.6 < found['gt_box/miou_box'] < found['gt_box/miou_ellipse'] < 0.9
    assert found['gt_point/miou_box'] == found['gt_box/miou_box']
