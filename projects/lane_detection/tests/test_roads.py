"""Drawn roads: seeded, varied, annotated where the paint is."""

import json
import operator
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lane_detection.datasets import CULaneDataset, TuSimpleDataset
from lane_detection.datasets.base import read_lanes
from lane_detection.geometry import assign_slots, existence
from lane_detection.roads import (
    CULANE_FRAME,
    TUSIMPLE_FRAME,
    RoadSet,
    draw_scene,
    generate,
    lane_points,
    render,
)
from lane_detection.roads.__main__ import main
from lane_detection.roads.generate import mapped

SMALL = RoadSet(num_train=4, num_val=3, scale=0.25, seed=5)
FRAMES = {'culane': CULANE_FRAME, 'tusimple': TUSIMPLE_FRAME}


def scenes(number, *, frame=CULANE_FRAME):
    return [
        draw_scene(np.random.default_rng((1, i)), frame=frame)
        for i in range(number)
    ]


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module')
def culane_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('roads') / 'culane'
    assert generate(root, SMALL)
    return root


@pytest.mark.parametrize('name', FRAMES)
def test_lanes_are_as_an_annotator_gives_them(name):
    frame = FRAMES[name]
    height, width = frame.shape
    numbers = Counter()
    for scene in scenes(200, frame=frame):
        lanes = lane_points(scene)
        numbers[len(lanes)] += 1
        slots = [slot for slot, _ in lanes]
        assert slots == sorted(set(slots))
        for _, points in lanes:
            assert set(points[:, 1]) <= set(frame.rows)
            assert (np.diff(points[:, 1]) == -10).all()
            assert points[:, 0].min() > -0.02 * width
            assert points[:, 0].max() < 1.02 * width
            assert points[0, 1] <= height
    assert set(numbers) <= {0, 1, 2, 3, 4}
    assert numbers[2] + numbers[3] + numbers[4] > 180
    assert min(numbers[2], numbers[3], numbers[4]) > 10


def test_slots_are_those_of_the_geometry():
    agreeing = []
    for scene in scenes(200):
        lanes = lane_points(scene)
        found = assign_slots([p for _, p in lanes], shape=(590, 1640))
        agreeing += [
            slot == other
            for (slot, _), other in zip(lanes, found.tolist(), strict=True)
        ]
    assert np.mean(agreeing) > 0.95


def test_curvature_and_scenes_vary():
    drawn = scenes(300)
    bends = []
    for scene in drawn:
        for _, points in lane_points(scene):
            x, y = points.T
            chord = np.interp(y[::-1], y[[-1, 0]], x[[-1, 0]])[::-1]
            bends.append(float(np.abs(x - chord).max()))
    # From straight lines to bends of many lane widths.
    assert np.percentile(bends, 20) < 20
    assert np.percentile(bends, 90) > 60
    assert set(Counter(scene.category for scene in drawn)) == {
        'normal',
        'crowd',
        'hlight',
        'shadow',
        'arrow',
        'curve',
        'cross',
        'night',
    }
    assert len({scene.camera for scene in drawn}) == 300


def test_lanes_lie_on_the_paint():
    found = 0
    for i, scene in enumerate(scenes(14)):
        lines = tuple(
            replace(line, dash=None, wear=0.0, strength=1.0, double=False)
            for line in scene.lines
        )
        plain = replace(
            scene,
            lines=lines,
            cars=(),
            light='day',
            shadows=False,
            glare=False,
            arrows=False,
            crosswalk=None,
            fog=None,
            hood=0.0,
            edges=(scene.edges[0] - 5, scene.edges[1] + 5),
        )
        image = render(plain, np.random.default_rng(i), scale=0.49)
        scale = np.array(image.shape[1::-1]) / (1640, 590)
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)
        for _, points in lane_points(plain):
            near = points[points[:, 1] > scene.camera.horizon + 90]
            near = near[
                (near[:, 0] > 60) & (near[:, 0] < 1580) & (near[:, 1] < 590)
            ]
            if len(near) < 4:
                continue
            rows = (near[:, 1] * scale[1]).astype(int)
            on, left, right = (
                gray[
                    rows, ((near[:, 0] + shift) * scale[0]).astype(int)
                ].mean()
                for shift in (0, -45, 45)
            )
            found += 1
            assert on > max(left, right) + 15
    assert found > 20


def test_images_depend_on_the_seed_alone():
    images = [
        render(
            draw_scene(np.random.default_rng(seed)),
            np.random.default_rng(seed),
            scale=0.25,
        )
        for seed in (0, 0, 1)
    ]
    assert images[0].shape == (148, 410, 3)
    assert images[0].dtype == np.uint8
    np.testing.assert_array_equal(images[0], images[1])
    assert np.abs(images[0].astype(int) - images[2]).mean() > 5


def test_culane_layout(culane_root):
    dataset = CULaneDataset(
        data_root=str(culane_root), ann_file='list/train_gt.txt'
    )
    assert len(dataset) == SMALL.num_train
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        assert cv2.imread(info['img_path']).shape == (148, 410, 3)
        mask = cv2.imread(
            str(culane_root / 'laneseg_label_w16' / info['img_id'])[:-3]
            + 'png',
            cv2.IMREAD_UNCHANGED,
        )
        assert mask.shape == (148, 410)
        shown = sorted(set(np.unique(mask).tolist()) - {0})
        assert existence([slot - 1 for slot in shown]).tolist() == list(
            info['existence']
        )
        assert len(read_lanes(info)) == sum(info['existence'])
    val = CULaneDataset(
        data_root=str(culane_root),
        ann_file='list/val.txt',
        category_dir='list/test_split',
    )
    assert all(val.get_data_info(i)['category'] for i in range(len(val)))


def test_a_set_that_is_there_is_left_alone(culane_root, tmp_path):
    before = files_of(culane_root)
    assert not generate(culane_root, SMALL)
    assert files_of(culane_root) == before
    with pytest.raises(FileExistsError, match='choose another folder'):
        generate(culane_root, replace(SMALL, seed=6))
    (tmp_path / 'mine').write_text('something')
    with pytest.raises(FileExistsError, match='other files'):
        generate(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ['mine']


def test_processes_keep_the_order():
    assert mapped(operator.neg, 40, 2) == [-i for i in range(40)]


@pytest.mark.long
@pytest.mark.slow
def test_number_of_processes_changes_nothing(culane_root, tmp_path):
    assert generate(tmp_path / 'two', SMALL, workers=2)
    assert files_of(tmp_path / 'two') == files_of(culane_root)


def test_nothing_is_left_of_a_set_that_failed(tmp_path, monkeypatch):
    def fail(scene, rng, *, scale):
        raise RuntimeError('out of paint')

    monkeypatch.setattr('lane_detection.roads.layouts.render', fail)
    with pytest.raises(RuntimeError, match='out of paint'):
        generate(tmp_path / 'set', SMALL)
    assert list(tmp_path.iterdir()) == []


def test_tusimple_layout(tmp_path, capsys):
    out = tmp_path / 'set'
    arguments = [
        '--out',
        str(out),
        '--layout',
        'tusimple',
        '--num-train',
        '3',
        '--num-val',
        '2',
        '--scale',
        '0.25',
    ]
    main(arguments)
    assert '3 + 2 images' in capsys.readouterr().out
    dataset = TuSimpleDataset(data_root=str(out), ann_file='label_data.json')
    assert len(dataset) == 3
    info = dataset.get_data_info(0)
    assert cv2.imread(info['img_path']).shape == (180, 320, 3)
    assert info['h_samples'] == list(range(160, 720, 10))
    for line in (out / 'test_label.json').read_text().splitlines():
        for lane in json.loads(line)['lanes']:
            assert len(lane) == 56
            assert max(lane) >= 0
    main(arguments)
    assert 'already exists' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='choose another folder'):
        main([*arguments, '--seed', '9'])


@pytest.mark.parametrize(
    'change', [dict(layout='kitti'), dict(scale=0.0), dict(num_val=0)]
)
def test_impossible_sets(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RoadSet(**change)
