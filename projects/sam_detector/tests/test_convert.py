import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from segment_anything import sam_model_registry

from sam_detector import convert
from sam_detector.loading import detector_weights, load_exactly
from sam_detector.sam import SAM_SIZES, PromptedSAM

DETECTOR = {
    'type': 'RetinaNet',
    'backbone': {
        'type': 'ResNet',
        'depth': 18,
        'base_channels': 8,
        'norm_cfg': {'type': 'BN'},
    },
    'neck': {
        'type': 'FPN',
        'in_channels': [8, 16, 32, 64],
        'out_channels': 8,
        'num_outs': 5,
    },
    'bbox_head': {
        'type': 'RetinaHead',
        'num_classes': 2,
        'in_channels': 8,
        'feat_channels': 8,
        'stacked_convs': 1,
    },
    'test_cfg': {
        'nms_pre': 10,
        'score_thr': 0.0,
        'max_per_img': 5,
        'nms': {'type': 'nms', 'iou_threshold': 0.5},
    },
}


@pytest.mark.parametrize('size', ['vit_b', 'vit_l', 'vit_h'])
def test_official_layout(size):
    """Names and shapes are those of segment_anything's own builder."""
    with torch.device('meta'):
        expected = sam_model_registry[size]().state_dict()
        own = PromptedSAM(size).state_dict()
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in expected.items() if not k.startswith('pixel_')
    }
    assert convert.sam_size(own) == size


@pytest.fixture
def files(tmp_path):
    """An official SAM file (tiny) and a training checkpoint of mmdet."""
    sam = PromptedSAM('tiny')
    torch.save(sam.state_dict(), tmp_path / 'sam.pth')
    detector = MODELS.build(DETECTOR)
    torch.save(
        {
            'state_dict': detector.state_dict(),
            'meta': {'epoch': 3, 'dataset_meta': {'classes': ('a', 'b')}},
            'optimizer': {},
        },
        tmp_path / 'detector.pth',
    )
    return tmp_path, sam, detector


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )


def build(**options):
    return MODELS.build(
        ConfigDict(
            {
                'type': 'SAMDetector',
                'sam': {'type': 'PromptedSAM', 'size': 'tiny'},
                'detector': DETECTOR,
                **options,
            }
        )
    )


def test_a_merged_file_is_both(files):
    folder, sam, detector = files
    out = folder / 'new' / 'merged.pth'
    convert.main(
        [
            '--sam',
            str(folder / 'sam.pth'),
            '--detector',
            str(folder / 'detector.pth'),
            '--out',
            str(out),
        ]
    )
    content = torch.load(out, weights_only=True)
    assert content['meta'] == {
        'sam_detector': {
            'sam': 'sam.pth',
            'size': 'tiny',
            'detector': 'detector.pth',
        },
        'dataset_meta': {'classes': ['a', 'b']},
    }
    model = build()
    model.load_state_dict(content['state_dict'], strict=True)
    assert same(model.sam, sam)
    assert same(model.detector, detector)
    # Both parts can be taken from the merged file again.
    again = build()
    again.load_sam(out)
    again.load_detector(out)
    assert same(again, model)


def test_official_files_load_as_they_are(files):
    folder, sam, detector = files
    model = build(detector=None, prompts=['gt_box'])
    state = torch.load(folder / 'sam.pth', weights_only=True)
    model.load_state_dict(state, strict=True)
    assert same(model.sam, sam)
    model = build()
    model.load_sam(folder / 'sam.pth')
    model.load_detector(folder / 'detector.pth')
    assert same(model.sam, sam)
    assert same(model.detector, detector)


def test_official_files_load_through_mmengine(files):
    from mmengine.runner.checkpoint import load_checkpoint

    folder, sam, _ = files
    model = build(detector=None, prompts=['gt_box'])
    load_checkpoint(model, str(folder / 'sam.pth'), strict=True)
    assert same(model.sam, sam)


def test_what_does_not_fit_is_named(files):
    folder, _, detector = files
    state = detector.state_dict()
    state['neck.extra'] = state.pop('bbox_head.retina_cls.bias')
    state['bbox_head.retina_reg.bias'] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r'(?s)1 missing \(bbox_head.*'
        r'1 unexpected \(neck.extra\).*another shape',
    ):
        load_exactly(detector, state, path='x.pth')
    with pytest.raises(ValueError, match=r'sam\.pth holds no detector'):
        detector_weights(folder / 'sam.pth')
    with pytest.raises(ValueError, match='holds no SAM'):
        build().load_sam(folder / 'detector.pth')
    with pytest.raises(ValueError, match='no detector to load'):
        build(detector=None, prompts=['gt_box']).load_detector('x.pth')


def test_the_command_fails_with_one_sentence(files):
    folder, _, _ = files
    out = ['--out', str(folder / 'out.pth')]
    with pytest.raises(SystemExit, match='no checkpoint file'):
        convert.main(['--sam', str(folder / 'none.pth'), *out])
    with pytest.raises(SystemExit, match='holds no SAM'):
        convert.main(['--sam', str(folder / 'detector.pth'), *out])
    state = torch.load(folder / 'sam.pth', weights_only=True)
    state = {k: v for k, v in state.items() if '.blocks.1.' not in k}
    torch.save(state, folder / 'other.pth')
    with pytest.raises(SystemExit, match=f'not one of {", ".join(SAM_SIZES)}'):
        convert.main(['--sam', str(folder / 'other.pth'), *out])


def test_a_file_that_runs_code_is_refused(files):
    folder, _, _ = files
    torch.save({'state_dict': {}, 'evil': print}, folder / 'evil.pth')
    with pytest.raises(SystemExit, match='trust'):
        convert.main(
            [
                '--sam',
                str(folder / 'sam.pth'),
                '--detector',
                str(folder / 'evil.pth'),
                '--out',
                str(folder / 'out.pth'),
            ]
        )


def test_a_real_detector_prompts(files):
    """A RetinaNet, its own predict, and boxes in original pixels."""
    from mmdet.structures import DetDataSample

    model = build(
        data_preprocessor={
            'type': 'SAMDataPreprocessor',
            'image_size': 256,
            'detector': {
                'type': 'DetDataPreprocessor',
                'pad_size_divisor': 32,
            },
        }
    ).eval()
    data = DetDataSample(
        metainfo={
            'ori_shape': (40, 60),
            'img_shape': (80, 120),
            'scale_factor': (2.0, 2.0),
            'sam_views': [(0, 0, 60, 40)],
            'sam_view_sizes': [(171, 256)],
        }
    )
    image = torch.randint(255, (3, 80, 120), dtype=torch.uint8)
    view = torch.randint(255, (1, 3, 256, 256), dtype=torch.uint8)
    result = model.test_step(
        {'inputs': {'sam': [view], 'img': [image]}, 'data_samples': [data]}
    )[0].pred_instances
    assert result.masks.shape == (5, 40, 60)
    assert (result.bboxes[:, 2] <= 60).all()
    assert (result.bboxes[:, 3] <= 40).all()
