"""The official layouts, with what is peculiar to them."""

import json
import pickle

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS

from lane_detection.datasets import (
    CULaneDataset,
    CurveLanesDataset,
    TuSimpleDataset,
)
from lane_detection.datasets.base import read_lanes

TEST_PIPELINE = [
    dict(type='LoadLaneImage'),
    dict(type='LaneCrop'),
    dict(type='LaneResize'),
    dict(type='LoadLanes'),
    dict(type='PackLaneInputs'),
]
FRAME = dict(top=250, size=(144, 400))
LANES = '400 590 420 580 440 570 \n1200 590 1190 580 1180 570 \n'


def write_image(path, shape=(59, 164)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*shape, 3), 90, dtype=np.uint8))


@pytest.fixture
def culane_root(tmp_path):
    """Three images: two lanes, none, and one lane."""
    clip = tmp_path / 'driver_1/c.MP4'
    for name, text in (('0', LANES), ('1', ''), ('2', '-5 590 9 580 20 570')):
        write_image(clip / f'{name}.jpg')
        (clip / f'{name}.lines.txt').write_text(text)
    lists = tmp_path / 'list'
    (lists / 'test_split').mkdir(parents=True)
    (lists / 'train.txt').write_text(
        '/driver_1/c.MP4/0.jpg \ndriver_1/c.MP4/1.jpg\n\n'
        '/driver_1/c.MP4/2.jpg\n'
    )
    (lists / 'train_gt.txt').write_text(
        '/driver_1/c.MP4/0.jpg /laneseg_label_w16/0.png 1 1 0 0\n'
        '/driver_1/c.MP4/2.jpg /laneseg_label_w16/2.png 1 1 1 0\n'
    )
    split = lists / 'test_split'
    (split / 'test0_normal.txt').write_text('/driver_1/c.MP4/0.jpg\n')
    (split / 'test7_cross.txt').write_text('driver_1/c.MP4/1.jpg \n')
    return tmp_path


def culane(root, **kwargs):
    kwargs = {
        'ann_file': 'list/train.txt',
        'input_frame': FRAME,
        'pipeline': TEST_PIPELINE,
        **kwargs,
    }
    return CULaneDataset(data_root=str(root), **kwargs)


def test_culane_items(culane_root):
    dataset = culane(culane_root, category_dir='list/test_split')
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [info['img_id'] for info in infos] == [
        f'driver_1/c.MP4/{i}.jpg' for i in range(3)
    ]
    assert [info['category'] for info in infos] == ['normal', 'cross', None]
    assert [len(read_lanes(info)) for info in infos] == [2, 0, 1]
    assert read_lanes(infos[2])[0][0].tolist() == [-5, 590]


def test_culane_samples(culane_root):
    sample = culane(culane_root)[0]['data_samples']
    # Annotations mean 1640x590, whatever the size of the image file.
    assert sample.ori_shape == (590, 1640)
    assert sample.img_shape == (144, 400)
    assert sample.crop == pytest.approx((0, 250, 1640, 590))
    assert sample.lane_frame == 'original'
    assert sample.gt_lanes.slots.tolist() == [1, 2]
    assert sample.gt_lanes.points[0][0].tolist() == [400, 590]
    empty = culane(culane_root)[1]['data_samples']
    assert len(empty.gt_lanes) == 0
    assert empty.gt_lanes.slots.shape == (0,)


def test_existence_flags_win_where_they_fit(culane_root):
    dataset = culane(culane_root, ann_file='list/train_gt.txt')
    assert dataset[0]['data_samples'].gt_lanes.slots.tolist() == [0, 1]
    # Three flags for one lane: judged from where it lies.
    assert dataset[1]['data_samples'].gt_lanes.slots.tolist() == [1]


def test_category_of_a_whole_set(culane_root):
    dataset = culane(
        culane_root, category='day', category_dir='list/test_split'
    )
    assert dataset[1]['data_samples'].category == 'day'


def test_images_without_lanes_can_be_left_out(culane_root):
    assert len(culane(culane_root)) == 3
    some = culane(culane_root, filter_cfg=dict(filter_empty_gt=True))
    assert len(some) == 2
    assert len(culane(culane_root, filter_cfg=dict(min_lanes=2))) == 1
    # Never in a test.
    whole = culane(
        culane_root, filter_cfg=dict(filter_empty_gt=True), test_mode=True
    )
    assert len(whole) == 3


def test_dataset_survives_pickling(culane_root):
    again = pickle.loads(pickle.dumps(culane(culane_root)))
    assert again[2]['data_samples'].gt_lanes.slots.tolist() == [1]


def test_annotations_of_another_archive_are_noticed(culane_root):
    assert len(culane(culane_root, expected_lanes=3)) == 3
    with pytest.raises(ValueError, match='has 3 lanes and not expected_la'):
        culane(culane_root, expected_lanes=4)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(ann_file='list/nope.txt'), FileNotFoundError, 'list of images'),
        (dict(category_dir='list/nope'), FileNotFoundError, 'category_dir'),
        (dict(data_prefix=dict(img='nope')), FileNotFoundError, 'data_prefix'),
        (dict(ann_file='list/empty.txt'), ValueError, 'lists no image'),
        (dict(ann_file='list/odd.txt'), ValueError, 'neither "/image.jpg"'),
    ],
)
def test_wrong_culane(culane_root, change, error, message):
    (culane_root / 'list/empty.txt').write_text('\n')
    (culane_root / 'list/odd.txt').write_text('/a.jpg /b.png yes\n')
    with pytest.raises(error, match=message):
        culane(culane_root, **change)


def test_missing_lane_file_is_named_when_it_is_read(culane_root):
    (culane_root / 'driver_1/c.MP4/1.lines.txt').unlink()
    dataset = culane(culane_root)
    assert len(dataset[0]['data_samples'].gt_lanes) == 2
    with pytest.raises(FileNotFoundError, match=r'1\.lines\.txt is missing'):
        dataset.prepare_data(1)


@pytest.fixture
def tusimple_root(tmp_path):
    rows = list(range(240, 720, 10))
    lane = [-2] * 20 + list(range(300, 328))
    for part in ('a', 'b'):
        name = f'clips/{part}/20.jpg'
        write_image(tmp_path / name, (72, 128))
        (tmp_path / f'{part}.json').write_text(
            json.dumps(
                {
                    'raw_file': name,
                    'lanes': [lane, [-2] * 48],
                    'h_samples': rows,
                }
            )
            + ' \n\n'
        )
    return tmp_path


def tusimple(root, **kwargs):
    kwargs = {
        'ann_file': 'a.json',
        'pipeline': TEST_PIPELINE,
        'input_frame': dict(size=(360, 640)),
        **kwargs,
    }
    return TuSimpleDataset(data_root=str(root), **kwargs)


def test_tusimple(tusimple_root):
    dataset = tusimple(tusimple_root, ann_file=['a.json', 'b.json'])
    assert [dataset.get_data_info(i)['raw_file'] for i in range(2)] == [
        'clips/a/20.jpg',
        'clips/b/20.jpg',
    ]
    sample = dataset[1]['data_samples']
    assert sample.ori_shape == (720, 1280)
    assert sample.img_shape == (360, 640)
    assert sample.h_samples == list(range(240, 720, 10))
    points = sample.gt_lanes.points
    assert len(points) == 1
    assert points[0][0].tolist() == [327, 710]
    assert sample.gt_lanes.slots.tolist() == [2]


def test_tusimple_labels_of_reduced_images(tusimple_root):
    label = json.loads((tusimple_root / 'a.json').read_text())
    lane = [x if x < 0 else x / 2.5 for x in label['lanes'][0]]
    label = {
        **label,
        'lanes': [lane],
        'h_samples': [y / 2.5 for y in label['h_samples']],
    }
    (tusimple_root / 'small.json').write_text(json.dumps(label))
    small = tusimple(tusimple_root, ann_file='small.json', label_scale=2.5)
    whole = tusimple(tusimple_root)
    for first, second in ((small[0], whole[0]),):
        found, wanted = first['data_samples'], second['data_samples']
        assert found.h_samples == pytest.approx(wanted.h_samples)
        np.testing.assert_allclose(
            found.gt_lanes.points[0], wanted.gt_lanes.points[0], rtol=1e-5
        )
    with pytest.raises(ValueError, match='label_scale=0'):
        tusimple(tusimple_root, label_scale=0)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"raw_file": "clips/a/20.jpg"}', 'test_tasks'),
        ('not json', r'wrong\.json:1 is not'),
        (
            '{"raw_file": "clips/a/20.jpg", "lanes": [[1]], '
            '"h_samples": [1, 2]}',
            'must be equal',
        ),
        ('', 'lists no image'),
    ],
)
def test_wrong_tusimple(tusimple_root, line, message):
    (tusimple_root / 'wrong.json').write_text(line)
    with pytest.raises(ValueError, match=message):
        tusimple(tusimple_root, ann_file='wrong.json')
    with pytest.raises(FileNotFoundError, match='label_data_0313'):
        tusimple(tusimple_root, ann_file='none.json')


@pytest.mark.parametrize('entry', ['images/a.jpg', '/images/a.jpg', 'a.jpg'])
def test_curvelanes(tmp_path, entry):
    root = tmp_path / 'train'
    write_image(root / 'images/a.jpg', (144, 256))
    (root / 'labels').mkdir()
    (root / 'labels/a.lines.json').write_text(
        json.dumps(
            {
                'Lines': [
                    [{'x': '20', 'y': '140'}, {'x': '50', 'y': '90'}],
                    [{'x': '200', 'y': '140'}, {'x': '150', 'y': '90'}],
                ]
            }
        )
    )
    (root / 'train.txt').write_text(f'{entry}\n')
    dataset = CurveLanesDataset(
        data_root=str(tmp_path),
        ann_file='train/train.txt',
        data_prefix=dict(img='train/'),
        pipeline=TEST_PIPELINE,
        input_frame=dict(top=[(144, 64), (72, 36)], size=(40, 128)),
    )
    sample = dataset[0]['data_samples']
    assert sample.img_id == 'images/a.jpg'
    assert sample.ori_shape == (144, 256)
    assert sample.crop == pytest.approx((0, 64, 256, 144))
    assert sample.gt_lanes.slots.tolist() == [1, 2]


@pytest.mark.parametrize(
    'name', ['CULaneDataset', 'TuSimpleDataset', 'CurveLanesDataset']
)
def test_registered(name):
    assert DATASETS.get(name).__name__ == name


@pytest.mark.data('culane_mini')
def test_culane_mini():
    parts = {}
    for name in ('train', 'val'):
        dataset = culane(
            'data/culane_mini',
            ann_file=f'list/{name}.txt',
            input_frame={**FRAME, 'reduce': 2},
        )
        parts[name] = [
            read_lanes(dataset.get_data_info(i)) for i in range(len(dataset))
        ]
        item = dataset[5]
        assert item['inputs'].shape == (3, 144, 400)
        assert item['data_samples'].crop == (0, 250, 1640, 590)
    assert {name: len(part) for name, part in parts.items()} == {
        'train': 130,
        'val': 40,
    }
    assert sum(map(len, parts['val'])) == 118
    assert max(map(len, parts['train'])) == 4


@pytest.mark.data('tusimple_mini')
def test_tusimple_mini():
    dataset = tusimple(
        'data/tusimple_mini', ann_file='label_data.json', label_scale=2.5
    )
    assert len(dataset) == 10
    for item in dataset:
        sample = item['data_samples']
        assert sample.h_samples[0] % 10 == 0
        assert sample.h_samples[-1] == 710
        assert len(sample.gt_lanes) >= 2
        assert max(p[:, 0].max() for p in sample.gt_lanes.points) > 512
        assert (sample.gt_lanes.slots >= 0).all()
