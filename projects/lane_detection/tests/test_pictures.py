"""Pictures of several models of the same frames."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from lane_detection.adapters import LaneAdapter
from lane_detection.pictures import (
    Frames,
    compare_foregrounds,
    draw_comparison,
    foreground_maps,
    input_image,
    predict,
    run_heads,
)
from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
)

pytest.importorskip('matplotlib')

PROJECT = Path(__file__).resolve().parents[1]
SIZE = (64, 160)


class Drawn:
    """A data set of lane samples, whose inputs are noise."""

    def __init__(self, path, *, category='culane', total=9):
        self.path, self.category, self.total = path, category, total

    def __len__(self):
        return self.total

    def __getitem__(self, index):
        sample = lane_sample(road_lanes(bend=10.0 * index), img_shape=SIZE)
        sample.set_metainfo({'img_path': str(self.path), 'img_id': f'{index}'})
        generator = torch.Generator().manual_seed(index)
        return {
            'inputs': torch.rand(3, *SIZE, generator=generator),
            'data_samples': sample,
        }


@pytest.fixture
def drawn(tmp_path):
    """Frames of a file at half of the annotations' size."""
    image = np.zeros((295, 820, 3), np.uint8)
    image[125:, :] = (0, 0, 200)
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), image)
    return Drawn(path)


@pytest.fixture
def model():
    return tiny_detector(
        dict(type='SegmentationHead', in_channels=32, feat_shape=(4, 10)),
        backbone=tiny_backbone(num_stages=3, out_indices=(2,)),
    ).eval()


def test_frames_are_spaced_evenly(drawn):
    both = SimpleNamespace(datasets=[Drawn('x', category='roads'), drawn])
    frames = Frames(both, category='culane', count=3)
    assert frames.indices == [1, 4, 7]
    batch = frames.batch()
    assert [s.img_id for s in batch['data_samples']] == ['1', '4', '7']
    with pytest.raises(ValueError, match=r"choose one of \['culane', 'roads"):
        Frames(both, category='night', count=3)
    with pytest.raises(ValueError, match='from 1 to 9'):
        Frames(both, category='roads', count=10)


def test_models_are_drawn_side_by_side(drawn, model, tmp_path):
    from matplotlib.image import imread

    frames = Frames(drawn, category='culane', count=2)
    columns = {'float': predict(model, frames)}
    columns['shifted'] = predict(model, frames)
    for number, sample in enumerate(columns['shifted']):
        sample.pred_lanes = InstanceData(
            points=road_lanes(bend=100.0 * number)[:2], scores=torch.ones(2)
        )
    out = draw_comparison(
        columns,
        tmp_path / 'new' / 'lanes.png',
        captions={'shifted': ['a', 'b']},
    )
    picture = imread(out)[..., :3]
    assert picture.shape[1] > 2 * picture.shape[0]
    thirds = np.array_split(picture, 3, axis=1)
    assert all(np.std(third) > 0.05 for third in thirds)
    with pytest.raises(ValueError, match=r'\[1, 2\] frames'):
        draw_comparison({**columns, 'x': columns['float'][:1]}, out)


def test_input_is_what_the_network_sees(drawn):
    image = input_image(drawn[0]['data_samples'])
    assert image.shape == (170, 820, 3)
    assert (image == [200, 0, 0]).all()


def test_foregrounds_are_compared():
    heads = {'hm': torch.zeros(1, 1, 1, 4), 'exist': torch.zeros(1, 2)}
    soft = torch.tensor([0.0, 0.2, 0.4, 1.0])
    near = {'hm': 2 * soft - 0.1, 'exist': torch.ones(())}
    found = compare_foregrounds({'hm': soft, 'exist': soft[0]}, near, heads)
    assert found['hm']['correlation'] == pytest.approx(1)
    assert found['hm']['confidence'] == pytest.approx(0.4)
    assert found['hm']['proximity'] == pytest.approx(0.7)
    assert found['exist']['correlation'] is None


def test_foreground_of_maps(drawn, model):
    frames = Frames(drawn, category='culane', count=2)
    adapter = LaneAdapter(model)
    outputs = run_heads(model, model, frames, adapter=adapter)
    for one, two in zip(
        outputs['heads_float'], outputs['heads_quant'], strict=True
    ):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(outputs['metas'][0]) == 2
    weights = adapter.foreground_proxy(outputs['heads_float'][0])
    maps = foreground_maps(weights, index=1)
    assert list(maps) == ['seg']
    assert maps['seg'].shape == tuple(weights['seg'].shape[-2:])
    assert 0 <= maps['seg'].min() < maps['seg'].max() <= 1
    shared = torch.rand(2, 3, 4, 5)
    maps = foreground_maps({'a': shared, 'b': shared, 'c': torch.rand(2, 7)})
    assert list(maps) == ['a, b']
    np.testing.assert_array_equal(maps['a, b'], shared[0].amax(dim=0).numpy())
    with pytest.raises(ValueError, match='the heads cls, reg have a weight'):
        foreground_maps(dict.fromkeys(('cls', 'reg'), torch.rand(2, 9, 1)))


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['lanes', '--table', 'none', '--rows', 'mse w4a4'], 'none.table.yml'),
        (['foreground', '--table', 'none'], 'none.table.yml'),
    ],
)
def test_script_names_a_missing_table(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PROJECT))
    spec = importlib.util.spec_from_file_location(
        'lane_pictures', PROJECT / 'make_pictures.py'
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.raises(SystemExit, match=message):
        script.main([*argv, '--out', 'x.png'])
