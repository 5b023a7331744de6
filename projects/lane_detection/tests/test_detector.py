"""Tests of the detector's three modes and its preprocessor."""

from pathlib import Path

import pytest
import torch
from drawn_roads import make_batch, preprocessor

pytest.importorskip('mmdet')
PROJECT = Path(__file__).resolve().parents[1]
SIZE = (32, 96)


@pytest.fixture
def model():
    from mmdet.registry import MODELS

    import lane_detection.models  # noqa: F401

    model = MODELS.build(
        {
            'type': 'LaneDetector',
            'data_preprocessor': preprocessor(),
            'backbone': {
                'type': 'ResNet',
                'depth': 18,
                'base_channels': 8,
                'num_stages': 1,
                'strides': (1,),
                'dilations': (1,),
                'out_indices': (0,),
                'norm_eval': False,
            },
            'head': {
                'type': 'SegmentationHead',
                'in_channels': 8,
                'feat_shape': (8, 24),
            },
            'train_cfg': {'seg_weight': 2.0},
            'test_cfg': {'row_step': 10},
        }
    )
    model.init_weights()
    return model.eval()


def test_modes(model):
    batch = model.data_preprocessor(make_batch(SIZE), False)
    outputs = model(batch['inputs'], mode='tensor')
    assert tuple(outputs) == model.head_names == ('seg', 'exist')
    assert all(len(value) == 2 for value in outputs.values())
    losses = model(**batch, mode='loss')
    assert all(torch.isfinite(value) for value in losses.values())
    samples = model(**batch, mode='predict')
    assert samples == batch['data_samples']
    for sample in samples:
        lanes = sample.pred_lanes
        assert len(lanes.points) == len(lanes.scores)


def test_settings_reach_the_head(model):
    assert model.head.training_settings.seg_weight == 2.0
    assert model.head.testing_settings.row_step == 10


def test_train_and_test_steps(model):
    from mmengine.optim import OptimWrapper

    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    log = model.train_step(make_batch(SIZE), wrapper)
    assert log['loss'] > 0
    model.eval()
    assert len(model.test_step(make_batch(SIZE))) == 2


def test_errors(model):
    inputs = torch.zeros(1, 3, *SIZE)
    with pytest.raises(ValueError, match="mode='fast'"):
        model(inputs, mode='fast')
    for mode in ('loss', 'predict'):
        with pytest.raises(ValueError, match='needs data_samples'):
            model(inputs, mode=mode)


def test_preprocessor_refuses_mixed_sizes(model):
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(ValueError, match='resize all of them'):
        model.data_preprocessor({'inputs': images, 'data_samples': None})


def test_preprocessor_normalizes(model):
    image = torch.full((3, 8, 8), 150, dtype=torch.uint8)
    for inputs in ([image], image[None]):
        data = model.data_preprocessor({'inputs': inputs})
        assert torch.equal(data['inputs'], torch.ones(1, 3, 8, 8))
        assert data['data_samples'] is None


def test_lanes_of_one_point_are_left_out():
    import numpy as np

    from lane_detection.models import lane_instances

    meta = {'crop': (0, 100, 200, 200), 'img_shape': (50, 100)}
    found = lane_instances(
        [torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0, 40], [20, 30]])],
        scores=torch.tensor([0.9, 0.8]),
        meta=meta,
    )
    assert found.scores.tolist() == pytest.approx([0.8])
    np.testing.assert_allclose(found.points[0], [[20, 180], [40, 160]])


def test_seeds_are_handed_to_the_head(model, monkeypatch):
    seen = {}

    def forward(feats, seeds=None):
        seen['seeds'] = seeds
        return {'seg': feats[-1]}

    monkeypatch.setattr(model.head, 'forward', forward)
    model(torch.zeros(1, 3, *SIZE), mode='tensor', seeds=[1])
    assert seen['seeds'] == [1]


def config_names():
    return sorted(
        path.name
        for family in ('scnn', 'resa', 'lstr')
        for path in (PROJECT / 'configs').glob(f'{family}_*.py')
    )


@pytest.mark.parametrize('name', config_names())
def test_configs_fit_their_inputs(name):
    """On the meta device, where paper-scale models cost nothing."""
    from mmdet.registry import MODELS
    from mmengine.config import Config

    import lane_detection  # noqa: F401

    config = Config.fromfile(PROJECT / 'configs' / name)
    dataset = config.train_dataloader.dataset
    while 'datasets' in dataset or 'dataset' in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    size = dataset.input_frame.size
    with torch.device('meta'):
        model = MODELS.build(config.model).eval()
        outputs = model(torch.zeros(2, 3, *size), mode='tensor')
    assert tuple(outputs) == model.head_names
    assert all(len(value) == 2 for value in outputs.values())
    if 'seg' in outputs:
        slots = 6 if 'tusimple' in name else 4
        assert outputs['exist'].shape == (2, slots)
        assert outputs['seg'].shape[1] == slots + 1
    if 'small' in name or 'lstr' in name:
        assert sum(p.numel() for p in model.parameters()) < 1.5e6
