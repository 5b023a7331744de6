import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm_python
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from sam_detector.losses import box_weights, dice_loss, focal_loss
from sam_detector.sam import PromptedSAM
from sam_detector.training import PromptTraining, prompt_losses

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
BOX = {'box_ratio': 1.0, 'point_ratio': 0.0}
POINT = {'box_ratio': 0.0, 'point_ratio': 1.0}
BOTH = {'box_ratio': 0.0, 'point_ratio': 0.0}
KINDS = {'box': BOX, 'point': POINT, 'both': BOTH}


def sample(*corners, size=16):
    """Square objects, masks of half the size of a 64 x 64 view."""
    masks = torch.zeros(len(corners), 32, 32)
    boxes = torch.zeros(len(corners), 4)
    for mask, box, (x, y) in zip(masks, boxes, corners, strict=True):
        mask[y // 2 : (y + size) // 2, x // 2 : (x + size) // 2] = 1
        box[:] = torch.tensor([x, y, x + size, y + size])
    data = DetDataSample()
    data.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(len(corners)).long(), masks=masks
    )
    return data


def view_of(data):
    """Objects are bright on a dark, noisy ground."""
    masks = data.gt_instances.masks
    bright = masks.amax(dim=0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return (bright * 3 - 1 + 0.1 * torch.randn(3, 64, 64))[None]


@pytest.mark.parametrize('kind', list(KINDS))
def test_gradients_reach_all_of_sam(sam_config, kind):
    sam = MODELS.build({**sam_config, 'box_mask_prompt': True}).train()
    data = [sample((4, 8), (30, 40)), sample((20, 20))]
    inputs = {'sam': [view_of(part) for part in data]}
    losses = prompt_losses(sam, inputs, data, cfg=KINDS[kind])
    assert set(losses) == {'loss_focal', 'loss_dice', 'loss_iou', 'miou'}
    assert all(loss.isfinite() for loss in losses.values())
    assert not losses['miou'].requires_grad
    assert 0 <= losses['miou'] <= 1
    sum(loss for name, loss in losses.items() if name != 'miou').backward()
    unused = {
        # What is not prompted with; no background point is ever drawn.
        'box': (
            'point_embeddings.0',
            'point_embeddings.1',
            'not_a_point',
            'no_mask_embed',
        ),
        'point': (
            'point_embeddings.0',
            'point_embeddings.2',
            'point_embeddings.3',
            'mask_downscaling',
        ),
        'both': ('point_embeddings.0', 'not_a_point', 'no_mask_embed'),
    }[kind]
    for name, parameter in sam.prompt_encoder.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        assert used != name.startswith(unused), name
    for name, parameter in sam.named_parameters():
        if not name.startswith('prompt_encoder.'):
            assert parameter.grad is not None, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    assert sam.image_encoder.patch_embed.proj.weight.grad.any()
    assert sam.mask_decoder.iou_prediction_head.layers[0].weight.grad.any()
    heads = sam.mask_decoder.output_hypernetworks_mlps
    trained = [bool(head.layers[0].weight.grad.any()) for head in heads]
    assert trained[0] == (kind != 'point')
    assert any(trained[1:]) == (kind == 'point')


@pytest.mark.parametrize('kind', ['box', 'point'])
def test_a_few_steps_learn_a_view(sam_config, kind):
    sam = MODELS.build(
        {
            **sam_config,
            'box_mask_prompt': True,
            'depth': 1,
            'global_blocks': (0,),
        }
    ).train()
    data = sample((8, 8), (36, 32))
    inputs = {'sam': [view_of(data)]}
    optimizer = torch.optim.Adam(sam.parameters(), lr=3e-2)
    totals = []
    for _ in range(30):
        losses = prompt_losses(sam, inputs, [data], cfg=KINDS[kind])
        total = losses['loss_focal'] + losses['loss_dice'] + losses['loss_iou']
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert np.mean(totals[-3:]) < 0.7 * np.mean(totals[:3])


def test_without_objects_there_is_nothing_to_learn(sam_config):
    sam = MODELS.build(sam_config).train()
    losses = prompt_losses(
        sam, {'sam': [torch.randn(1, 3, 64, 64)] * 2}, [sample(), sample()]
    )
    assert set(losses) == {'loss_focal', 'loss_dice', 'loss_iou'}
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not any(p.grad.any() for p in sam.image_encoder.parameters())


def test_empty_views_do_not_count(sam_config):
    sam = MODELS.build(sam_config).eval()
    data = sample((4, 8), (30, 40))
    view, other = view_of(data), torch.randn(1, 3, 64, 64)
    cfg = {**BOX, 'exact_ratio': 1.0}
    with torch.no_grad():
        alone = prompt_losses(sam, {'sam': [view]}, [data], cfg=cfg)
        mixed = prompt_losses(
            sam,
            {'sam': [other, view, other]},
            [sample(), data, sample()],
            cfg=cfg,
        )
    torch.testing.assert_close(mixed, alone)


def test_structures_of_mmdet_are_read(sam_config):
    sam = MODELS.build(sam_config).eval()
    data, packed = sample((4, 8), (30, 40)), DetDataSample()
    plain = data.gt_instances
    packed.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(plain.bboxes),
        labels=plain.labels,
        masks=BitmapMasks(plain.masks.numpy().astype(np.uint8), 32, 32),
    )
    view = view_of(data)
    found = []
    for part in (data, packed):
        torch.manual_seed(5)
        with torch.no_grad():
            found.append(prompt_losses(sam, {'sam': [view]}, [part]))
    torch.testing.assert_close(found[0], found[1])


class Recorder:
    """Stands for a SAM: remembers the prompts, gives fixed logits."""

    image_size = 64

    def __init__(self, logits=None, iou=0.0):
        self.prompts, self.several = [], []
        self.logits, self.iou = logits, iou

    def encode(self, views):
        return torch.zeros(len(views), 4, 4, 4)

    def decode(self, embedding, prompts, *, multimask_output):
        self.prompts.append(prompts)
        self.several.append(multimask_output)
        count = 3 if multimask_output else 1
        logits = torch.zeros(len(prompts), count, 16, 16)
        if self.logits is not None:
            logits = self.logits
        return logits, torch.full(logits.shape[:2], self.iou)


def run(sam, data, **cfg):
    return prompt_losses(
        sam, {'sam': [torch.zeros(1, 3, 64, 64)]}, [data], cfg=cfg
    )


@pytest.mark.parametrize('kind', list(KINDS))
def test_prompts_are_of_the_kind(kind):
    sam, data = Recorder(), sample((4, 8), (30, 40), (20, 0))
    run(sam, data, **KINDS[kind], exact_ratio=1.0)
    (prompts,) = sam.prompts
    assert len(prompts) == 3
    assert sam.several == [kind == 'point']
    assert (prompts.boxes is None) == (kind == 'point')
    assert (prompts.points is None) == (kind == 'box')
    truth = data.gt_instances.bboxes.tolist()
    if prompts.boxes is not None:
        assert sorted(prompts.boxes.tolist()) == sorted(truth)
    if prompts.points is not None:
        assert prompts.points.shape == (3, 1, 2)
        assert (prompts.labels == 1).all()
        inside = [
            any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in truth)
            for x, y in prompts.points[:, 0].tolist()
        ]
        assert all(inside)


def test_points_and_boxes_are_of_the_same_object():
    sam, data = Recorder(), sample((0, 0), (40, 40), (0, 40), (40, 0))
    run(sam, data, **BOTH)
    (prompts,) = sam.prompts
    points = prompts.points[:, 0]
    assert (points > prompts.boxes[:, :2] - 4).all()
    assert (points < prompts.boxes[:, 2:] + 4).all()


def test_kinds_are_drawn_as_often_as_asked():
    sam, data = Recorder(), sample((4, 8))
    for _ in range(300):
        run(sam, data, box_ratio=0.5, point_ratio=0.25, exact_ratio=0.5)
    kinds = [(p.boxes is not None, p.points is not None) for p in sam.prompts]
    assert kinds.count((True, False)) == pytest.approx(150, abs=35)
    assert kinds.count((False, True)) == pytest.approx(75, abs=30)
    assert kinds.count((True, True)) == pytest.approx(75, abs=30)
    boxes = [p.boxes for p in sam.prompts if p.boxes is not None]
    exact = [torch.equal(box, data.gt_instances.bboxes) for box in boxes]
    assert np.mean(exact) == pytest.approx(0.5, abs=0.1)
    moves = torch.cat(boxes) - data.gt_instances.bboxes
    assert 0 < moves.abs().max() <= 0.2 * 16 + 1e-4


def test_views_with_many_objects_prompt_some():
    corners = [(x, y) for x in (0, 16, 32, 48) for y in (0, 16, 32, 48)]
    sam, data = Recorder(), sample(*corners)
    for _ in range(2):
        run(sam, data, **BOX, max_prompts=5, exact_ratio=1.0)
    first, second = (p.boxes.tolist() for p in sam.prompts)
    assert len(first) == len(second) == 5
    assert len({tuple(box) for box in first}) == 5
    assert first != second


def test_terms_by_their_formulas():
    data = sample((16, 16))
    logits = torch.randn(1, 1, 16, 16)
    sam = Recorder(logits, iou=0.75)
    losses = run(
        sam,
        data,
        **BOX,
        focal_weight=3.0,
        dice_weight=2.0,
        iou_weight=5.0,
        gamma=1.0,
        alpha=0.25,
        margin=0.5,
        outside=0.1,
    )
    large = torch.nn.functional.interpolate(
        logits, size=(32, 32), mode='bilinear'
    )[:, 0]
    targets = data.gt_instances.masks
    weights = box_weights(
        torch.tensor([[8.0, 8.0, 16.0, 16.0]]),
        size=32,
        margin=0.5,
        outside=0.1,
    )
    focal = focal_loss(large, targets, weights, alpha=0.25, gamma=1.0)
    reached = ((large > 0) & (targets > 0)).sum() / (
        (large > 0) | (targets > 0)
    ).sum()
    assert losses['miou'].item() == pytest.approx(reached.item())
    torch.testing.assert_close(losses['loss_focal'], 3 * focal[0])
    torch.testing.assert_close(
        losses['loss_dice'], 2 * dice_loss(large, targets)[0]
    )
    torch.testing.assert_close(
        losses['loss_iou'], 5 * (0.75 - reached.float()) ** 2
    )


def test_the_best_of_three_masks_is_trained():
    data = sample((16, 16))
    exact = (
        torch.nn.functional.avg_pool2d(data.gt_instances.masks[None], 2) * 40
        - 20
    )
    logits = torch.cat([-exact, exact, torch.zeros_like(exact)], dim=1)
    logits.requires_grad_()
    losses = run(Recorder(logits, iou=1.0), data, **POINT)
    assert losses['miou'] > 0.95
    assert losses['loss_iou'] < 0.01
    assert losses['loss_dice'] < 0.1
    (losses['loss_focal'] + losses['loss_dice']).backward()
    touched = logits.grad.abs().amax(dim=(0, 2, 3)) > 0
    assert touched.tolist() == [False, True, False]


def test_several_views_are_refused():
    data = SimpleNamespace(gt_instances=sample((4, 8)).gt_instances)
    with pytest.raises(ValueError, match=r'has 2 views.*use ZoomCrop'):
        prompt_losses(Recorder(), {'sam': [torch.zeros(2, 3, 64, 64)]}, [data])


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ({'max_prompts': 0}, 'train_cfg.max_prompts=0 must be at least 1'),
        ({'box_ratio': 1.5}, r'train_cfg.box_ratio=1.5 must lie in \[0, 1\]'),
        ({'exact_ratio': -0.1}, 'train_cfg.exact_ratio=-0.1'),
        ({'box_ratio': 0.9, 'point_ratio': 0.2}, 'must not exceed 1 together'),
        ({'jitter': 0.3}, r'train_cfg.jitter=0.3 must lie in \[0, 0.25\]'),
    ],
)
def test_impossible_settings_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        PromptTraining(**cfg)


@pytest.mark.slow
@pytest.mark.data('nuclei')
def test_the_tool_trains_on_nuclei(tmp_path):
    """Two iterations and an evaluation; the file is read back."""
    config = PROJECT / 'configs/sam-tiny_nuclei.py'
    options = {
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.indices': 4,
        'val_dataloader.dataset.indices': 1,
        'train_cfg.max_epochs': 1,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.logger.interval': 1,
    }
    for loader in ('train_dataloader', 'val_dataloader'):
        options[f'{loader}.num_workers'] = 0
        options[f'{loader}.persistent_workers'] = False
    done = warm_python.run(
        [
            ROOT / 'tools/train.py',
            config,
            '--work-dir',
            tmp_path,
            '--cfg-options',
            *(f'{name}={value}' for name, value in options.items()),
        ],
        env=dict(
            os.environ,
            CUDA_VISIBLE_DEVICES='',
            PYTHONPATH=os.pathsep.join([str(PROJECT), str(ROOT)]),
        ),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    assert log.count('loss_focal: ') == 2
    assert 'nan' not in ' '.join(
        line for line in log.splitlines() if 'loss_focal: ' in line
    )
    saved = tmp_path / 'epoch_1.pth'
    trained = PromptedSAM('tiny', checkpoint=str(saved))
    state = torch.load(saved, map_location='cpu', weights_only=False)
    name = 'mask_decoder.iou_token.weight'
    assert torch.equal(
        trained.state_dict()[name], state['state_dict'][f'sam.{name}']
    )
