import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import nn

import sam_detector
from sam_detector.views import read_views
from taskptq.calibration import calibrate
from taskptq.modules.products import QuantProducts
from taskptq.prepare import QConfig, prepare

HEIGHT, WIDTH = 50, 70
BOXES = torch.tensor(
    [[4.0, 4.0, 16.0, 20.0], [40.0, 10.0, 60.0, 30.0], [2.0, 2.0, 68.0, 48.0]]
)
FOUND = {'boxes': BOXES, 'scores': torch.tensor([0.3, 0.9, 0.6])}


@MODELS.register_module(name='FixedBoxes', force=True)
class FixedBoxes(nn.Module):
    """Stands for a detector: gives the boxes of FOUND."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def predict(self, images, samples, rescale):
        assert rescale
        assert images.shape[0] == len(samples)
        for sample in samples:
            assert 'gt_instances' not in sample
            sample.pred_instances = InstanceData(
                bboxes=FOUND['boxes'],
                scores=FOUND['scores'],
                labels=torch.arange(len(FOUND['boxes'])),
            )
        return samples


@pytest.fixture
def found(monkeypatch):
    def change(boxes, scores):
        monkeypatch.setitem(FOUND, 'boxes', boxes)
        monkeypatch.setitem(FOUND, 'scores', scores)

    return change


def build(sam_config, **options):
    return MODELS.build(
        {
            'type': 'SAMDetector',
            'sam': sam_config,
            'detector': {'type': 'FixedBoxes'},
            **options,
        }
    ).eval()


def sample(*, annotated=True):
    views = [(0, 0, 32, 32), (38, 0, 32, 32), (0, 0, WIDTH, HEIGHT)]
    data = DetDataSample(
        metainfo={
            'ori_shape': (HEIGHT, WIDTH),
            'img_shape': (HEIGHT, WIDTH),
            'scale_factor': (1.0, 1.0),
            'sam_views': views,
            'sam_view_sizes': [(64, 64), (64, 64), (46, 64)],
        }
    )
    if annotated:
        masks = torch.zeros(2, HEIGHT, WIDTH)
        masks[0, 4:20, 4:16] = 1
        masks[1, 10:30, 40:60] = 1
        data.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(BOXES[:2]),
            labels=torch.tensor([1, 0]),
            masks=BitmapMasks(masks.byte().numpy(), HEIGHT, WIDTH),
        )
    return data


def batch(count=1, **options):
    inputs = {
        'sam': [torch.randn(3, 3, 64, 64) for _ in range(count)],
        'img': torch.randn(count, 3, HEIGHT, WIDTH),
    }
    return inputs, [sample(**options) for _ in range(count)]


@pytest.fixture
def encoded(monkeypatch):
    """Count the views of each call of the image encoder."""
    calls = []
    before = sam_detector.PromptedSAM.encode

    def encode(self, views):
        calls.append(len(views))
        return before(self, views)

    monkeypatch.setattr(sam_detector.PromptedSAM, 'encode', encode)
    return calls


@torch.no_grad()
def test_detections_prompt(sam_config, encoded):
    model = build(sam_config)
    results = model(*batch(2), mode='predict')
    assert encoded == [3, 3]
    for result in results:
        instances = result.pred_instances
        assert instances.masks.shape == (3, HEIGHT, WIDTH)
        assert instances.masks.dtype == torch.bool
        assert instances.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
        assert instances.labels.tolist() == [1, 2, 0]
        assert torch.equal(instances.bboxes, BOXES[[1, 2, 0]])
        assert result.prompted['detector'] is instances


@torch.no_grad()
def test_masks_are_those_of_the_prompts_alone(sam_config):
    """Each prompt's mask, done by hand in its own view."""
    model = build(sam_config)
    with torch.no_grad():
        # Logits of both signs, not one side of zero everywhere.
        for layer in model.sam.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.3)
    inputs, samples = batch()
    views = read_views(samples[0].metainfo)
    result = model(inputs, samples, mode='predict')[0].pred_instances
    expected = {0.3: 0, 0.9: 1, 0.6: 2}  # score: view
    for box, score, mask in zip(
        result.bboxes, result.scores.tolist(), result.masks, strict=True
    ):
        index = expected[round(score, 1)]
        view = views[index]
        prompts = sam_detector.Prompts(boxes=view.boxes_to_view(box[None]))
        logits, _ = model.sam.decode(
            model.sam.encode(inputs['sam'][0][index : index + 1]), prompts
        )
        logits = nn.functional.interpolate(logits, (64, 64), mode='bilinear')
        logits = nn.functional.interpolate(
            logits[..., : view.valid_height, : view.valid_width],
            (view.height, view.width),
            mode='bilinear',
        )[0, 0]
        region = mask[
            view.y : view.y + view.height, view.x : view.x + view.width
        ]
        assert ((region != (logits > 0)) & (logits.abs() > 1e-4)).sum() == 0
        assert mask.sum() == region.sum()


@torch.no_grad()
def test_every_kind_of_prompt_from_one_embedding(sam_config, encoded):
    kinds = ['gt_box', 'gt_point', 'gt_box_point', 'detector']
    result = build(sam_config, prompts=kinds)(*batch(), mode='predict')[0]
    assert encoded == [3]
    assert list(result.prompted) == kinds
    assert result.pred_instances is result.prompted['gt_box']
    for kind in kinds[:3]:
        instances = result.prompted[kind]
        assert instances.masks.shape == (2, HEIGHT, WIDTH)
        assert torch.equal(instances.bboxes, BOXES[:2])
        assert instances.labels.tolist() == [1, 0]
        assert torch.equal(instances.scores, instances.iou.clamp(0, 1))


@torch.no_grad()
def test_only_views_with_prompts_are_embedded(sam_config, encoded, found):
    found(BOXES[:2], torch.tensor([0.5, 0.6]))
    model = build(sam_config, test_cfg={'views_per_batch': 1})
    model(*batch(), mode='predict')
    assert encoded == [1, 1]
    encoded.clear()
    found(torch.zeros(0, 4), torch.zeros(0))
    result = model(*batch(), mode='predict')[0].pred_instances
    assert encoded == []
    assert result.masks.shape == (0, HEIGHT, WIDTH)
    assert result.bboxes.shape == (0, 4)


@torch.no_grad()
def test_images_without_labels_leave_annotated_prompts_out(sam_config):
    model = build(sam_config, prompts=['detector', 'gt_box'])
    result = model(*batch(annotated=False), mode='predict')[0]
    assert list(result.prompted) == ['detector']
    model = build(sam_config, detector=None, prompts=['gt_box'])
    result = model(*batch(annotated=False), mode='predict')[0]
    assert len(result.pred_instances) == 0
    assert result.prompted == {}


@torch.no_grad()
def test_test_cfg_limits_the_prompts(sam_config):
    model = build(
        sam_config,
        test_cfg={'max_prompts': 2, 'score_thr': 0.5, 'iou_in_scores': True},
    )
    result = model(*batch(), mode='predict')[0].pred_instances
    assert result.scores.tolist() == pytest.approx([0.9, 0.6])
    expected = result.scores * result.iou.clamp(0, 1)
    assert torch.equal(result.mask_scores, expected)
    model = build(sam_config, test_cfg={'mask_threshold': 1e6})
    result = model(*batch(), mode='predict')[0].pred_instances
    assert not result.masks.any()


@pytest.mark.parametrize(
    ('setting', 'kind', 'count'),
    [
        (True, 'gt_box', 3),
        (False, 'gt_point', 1),
        ('points', 'gt_box', 1),
        ('points', 'gt_point', 3),
        ('points', 'gt_box_point', 1),
    ],
)
@torch.no_grad()
def test_multimask_output(sam_config, setting, kind, count):
    model = build(sam_config, prompts=[kind], multimask_output=setting)
    inputs, samples = batch()
    heads = model(inputs, samples, mode='tensor')
    assert heads['logits'].shape == (2, count, 16, 16)
    assert heads['iou'].shape == (2, count)
    assert heads['embeddings'].shape == (2, 16, 4, 4)
    result = model(inputs, samples, mode='predict')[0].pred_instances
    torch.testing.assert_close(
        result.iou.sort().values, heads['iou'].amax(dim=1).sort().values
    )


@torch.no_grad()
def test_raw_outputs_without_prompts(sam_config):
    model = build(sam_config, detector=None, prompts=['gt_box'])
    inputs, samples = batch(annotated=False)
    assert list(model(inputs, samples, mode='tensor')) == ['embeddings']
    assert model(inputs)['embeddings'].shape == (3, 16, 4, 4)


def test_the_detector_stays_frozen(sam_config):
    model = build(sam_config).train()
    assert model.sam.training
    assert not model.detector.training
    assert not model.detector.norm.training
    assert not any(p.requires_grad for p in model.detector.parameters())
    assert all(p.requires_grad for p in model.sam.parameters())


def test_training_reaches_sam(sam_config):
    model = build(sam_config, detector=None, prompts=['gt_box']).train()
    masks = torch.zeros(2, 32, 32)
    masks[0, 4:16, 4:12] = 1
    masks[1, 10:30, 8:28] = 1
    data = DetDataSample()
    data.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 24, 32], [16, 20, 56, 60]]),
        labels=torch.zeros(2).long(),
        masks=masks,
    )
    losses = model({'sam': [torch.randn(1, 3, 64, 64)]}, [data], mode='loss')
    total = sum(v for k, v in losses.items() if k.startswith('loss'))
    total.backward()
    assert model.sam.image_encoder.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'prompts': ['box']}, 'give a list of one or more of detector'),
        ({'prompts': 'gt_box'}, 'give a list'),
        ({'prompts': []}, 'give a list'),
        ({'detector': None}, "prompts has 'detector', but there is none"),
        ({'multimask_output': 3}, "choose True, False or 'points'"),
        ({'test_cfg': {'max_prompts': 0}}, 'max_prompts=0 must be at least 1'),
    ],
)
def test_impossible_settings_are_refused(sam_config, options, message):
    with pytest.raises(Exception, match=message):
        build(sam_config, **options)


def test_a_batch_without_the_detectors_image_is_refused(sam_config):
    inputs, samples = batch()
    del inputs['img']
    with pytest.raises(ValueError, match='no image for the detector'):
        build(sam_config)(inputs, samples, mode='predict')


@torch.no_grad()
def test_detections_are_remembered_by_copies(sam_config, monkeypatch):
    """A table of many quantized SAMs runs the float detector once."""
    model = build(sam_config, test_cfg={'remember_detections': True})
    calls = []
    before = type(model.detector).predict

    def predict(self, *args, **kwargs):
        calls.append(1)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(type(model.detector), 'predict', predict)
    inputs, samples = batch(1)
    samples[0].set_metainfo({'img_path': 'a.png'})
    first = model(inputs, copy.deepcopy(samples), mode='predict')[0]
    again = copy.deepcopy(model)(
        inputs, copy.deepcopy(samples), mode='predict'
    )[0]
    assert len(calls) == 1
    assert torch.equal(first.pred_instances.masks, again.pred_instances.masks)
    model.load_state_dict(model.state_dict())
    model(inputs, copy.deepcopy(samples), mode='predict')
    assert len(calls) == 2, 'new weights may detect something else'


@torch.no_grad()
def test_pasting_masks_stays_float_where_products_are_quantized(sam_config):
    detector = build(sam_config)
    images = batch(annotated=True)

    def forward(model, batch):
        return model(*batch, mode='predict')

    points = dict(num_bits=8)
    qconfig = QConfig.from_dict(
        dict(weight=points, activation=points, products=True)
    )
    report = prepare(detector, qconfig, batch=images, forward=forward)
    calibrate(detector, [images], forward=forward, unreached='float')
    names = dict(detector.named_modules())
    assert not isinstance(names.get('products'), QuantProducts)
    assert any(isinstance(m, QuantProducts) for m in names.values())
    (row,) = [row for row in report.rows if row.name == '']
    assert row.status == 'float'
    assert 'pastes masks' in row.reason
