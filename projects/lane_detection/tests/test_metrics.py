import json

import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from mmengine.structures import InstanceData

from lane_detection.datasets.lane_files import read_culane
from lane_detection.metrics import (
    CULaneMetric,
    CurveLanesMetric,
    LaneDistortionMetric,
    LaneDump,
    TuSimpleMetric,
)
from lane_detection.metrics.benchmark import main, random_samples
from lane_detection.metrics.distortion_metric import common_rows
from lane_detection.metrics.predictions import read_predictions
from lane_detection.structures import LaneDataSample

ROWS = list(range(160, 711, 10))


def lane(x, *, slope=0.0, low=590.0, high=290.0):
    y = np.arange(low, high - 1, -10.0)
    points = np.stack([x + slope * (low - y), y], axis=1)
    return points.astype(np.float32)


def sample(predicted, truth, *, name='a/1.jpg', shape=(590, 1640), **meta):
    """What mmengine's evaluator hands to a metric."""
    result = LaneDataSample(
        metainfo=dict(img_id=name, ori_shape=shape, **meta)
    )
    result.gt_lanes = InstanceData(
        points=list(truth), slots=torch.arange(len(truth))
    )
    result.pred_lanes = InstanceData(
        points=list(predicted), scores=torch.full((len(predicted),), 0.75)
    )
    return result.to_dict()


def evaluate(metric, *batches):
    for batch in batches:
        metric.process({}, batch)
    return metric.evaluate(sum(len(batch) for batch in batches))


def test_culane_sums_counts():
    left, right = lane(400, slope=0.5), lane(1200, slope=-0.5)
    found = evaluate(
        CULaneMetric(),
        [
            sample([left, right], [left, right], name='1'),
            sample([left + np.float32([3, 0])], [left, right], name='2'),
        ],
        [sample([lane(800)], [], name='3')],
    )
    assert found == pytest.approx(
        {
            'F1_50': 2 * 3 / (4 + 4),
            'precision_50': 3 / 4,
            'recall_50': 3 / 4,
            'F1_75': 2 * 3 / (4 + 4),
            'precision_75': 3 / 4,
            'recall_75': 3 / 4,
        }
    )


def test_culane_categories():
    good, other = lane(400), lane(1200)
    found = evaluate(
        CULaneMetric(iou_thrs=(0.5,)),
        [
            sample([good], [good], category='normal', name='1'),
            sample([], [good], category='night', name='2'),
            sample([other], [good], category='normal', name='3'),
            sample([good, other], [], category='cross', name='4'),
        ],
    )
    assert found == pytest.approx(
        {
            'F1_50': 2 / 7,
            'precision_50': 1 / 4,
            'recall_50': 1 / 3,
            'normal/F1_50': 0.5,
            'normal/precision_50': 0.5,
            'normal/recall_50': 0.5,
            'night/F1_50': 0.0,
            'night/precision_50': 0.0,
            'night/recall_50': 0.0,
            'cross/FP_50': 2,
        }
    )


def test_culane_scales_other_sizes():
    whole = lane(400, slope=0.3)
    half = whole / 2
    found = evaluate(
        CULaneMetric(),
        [sample([half + np.float32([4, 0])], [half], shape=(295, 820))],
    )
    expected = evaluate(
        CULaneMetric(), [sample([whole + np.float32([8, 0])], [whole])]
    )
    assert found == expected
    assert (found['F1_50'], found['F1_75']) == (1, 0)


def test_culane_in_processes_gives_the_same():
    samples = random_samples(12, seed=1)
    batches = [samples[:5], samples[5:10], samples[10:]]
    metric = CULaneMetric(num_workers=2)
    found = evaluate(metric, *batches)
    assert metric.pool is None
    assert not metric.pending
    assert 0 < found['F1_75'] < 1
    assert found == evaluate(CULaneMetric(), *batches)
    # A metric is used again after each epoch.
    assert evaluate(metric, *batches) == found


def test_culane_keeps_only_counts():
    metric = CULaneMetric()
    metric.process({}, random_samples(3))
    assert len(metric.results) == 3
    for category, counts in metric.results:
        assert category is None
        assert np.array(counts).shape == (2, 3)


def test_no_predictions_at_all():
    found = evaluate(CULaneMetric(), [sample([], [lane(400)])])
    assert set(found.values()) == {0.0}
    found = evaluate(
        TuSimpleMetric(),
        [
            sample(
                [],
                [lane(9, low=710, high=160)],
                h_samples=ROWS,
                shape=(720, 1280),
            )
        ],
    )
    assert found == {'accuracy': 0, 'FP': 0, 'FN': 1, 'F1': 0}


def test_curvelanes_is_measured_at_224_pixels():
    truth = lane(1000, low=1430, high=700)
    # 25 of 2560 pixels are 2.2 of 224: 6-pixel strokes, IoU about 0.47
    near, far = truth + np.float32([11, 0]), truth + np.float32([40, 0])
    size = dict(shape=(1440, 2560))
    found = evaluate(
        CurveLanesMetric(), [sample([near, far], [truth], **size)]
    )
    assert found == pytest.approx(
        {'F1_50': 2 / 3, 'precision_50': 0.5, 'recall_50': 1}
    )
    assert (
        evaluate(CurveLanesMetric(), [sample([far], [truth], **size)])['F1_50']
        == 0
    )


def tusimple(predicted, truth, **kwargs):
    kwargs = dict(h_samples=ROWS, shape=(720, 1280)) | kwargs
    return evaluate(TuSimpleMetric(), [sample(predicted, truth, **kwargs)])


def test_tusimple_reads_lanes_at_rows():
    truth = lane(600, slope=0.5, low=710, high=300)
    # Points at other rows of the same line, and ends that lie beyond.
    y = np.array([705.0, 555.0, 310.0])
    predicted = np.stack([600 + 0.5 * (710 - y) + 3, y], axis=1)
    found = tusimple([predicted], [truth])
    rows_right = 56 - 2  # it lacks 710 and 300, and has 310 to 700
    assert found['accuracy'] == pytest.approx(rows_right / 56)
    assert (found['FP'], found['FN'], found['F1']) == (0, 0, 1)
    assert tusimple([predicted[::-1]], [truth]) == found


def test_tusimple_keeps_the_gaps_of_annotations():
    whole = lane(600, low=710, high=160)
    gappy = np.concatenate([whole[:20], whole[40:]])
    assert tusimple([whole], [gappy])['accuracy'] == pytest.approx(36 / 56)


def test_tusimple_leaves_out_what_is_outside():
    truth = lane(600, low=710, high=160)
    outside = lane(1300, low=710, high=160)
    found = tusimple(
        [truth, outside, outside - np.float32([1400, 0])], [truth]
    )
    assert found == {'accuracy': 1, 'FP': 0, 'FN': 0, 'F1': 1}


def test_tusimple_scales_other_sizes():
    rows = (np.array(ROWS) / 2.5).tolist()
    truth = np.stack([np.full(56, 240.0), rows], axis=1)[::-1]
    kwargs = dict(h_samples=rows, shape=(288, 512))
    for shift, accuracy in ((7.9, 1), (8, 0)):  # 20 of 1280 pixels
        found = tusimple([truth + np.array([shift, 0])], [truth], **kwargs)
        assert found['accuracy'] == accuracy


def test_tusimple_averages_images():
    truth = lane(600, low=710, high=160)
    kwargs = dict(h_samples=ROWS, shape=(720, 1280))
    found = evaluate(
        TuSimpleMetric(),
        [sample([truth], [truth], name='1', **kwargs)],
        [sample([truth + np.float32([50, 0])], [truth], name='2', **kwargs)],
    )
    assert found == {'accuracy': 0.5, 'FP': 0.5, 'FN': 0.5, 'F1': 0.5}


def test_tusimple_needs_its_rows():
    truth = lane(600)
    with pytest.raises(ValueError, match='has no h_samples'):
        tusimple([truth], [truth], h_samples=None)
    with pytest.raises(ValueError, match='points between the rows'):
        tusimple([truth], [truth + np.float32([0, 3])])


def test_distortion():
    lanes = [lane(x) for x in (300, 600, 900, 1200)]
    moved = [points + np.float32([5, 0]) for points in lanes]
    rows = dict(rows=range(300, 590, 10))
    found = evaluate(
        LaneDistortionMetric(**rows),
        [sample(moved, lanes, name='1'), sample(lanes[:3], lanes, name='2')],
    )
    assert found == pytest.approx(
        {'lds': (5 + 7.5) / 2, 'lds_distance': 5 * 4 / 7, 'lds_matched': 7 / 8}
    )
    assert evaluate(LaneDistortionMetric(), [sample([], [])]) == {
        'lds': 0,
        'lds_distance': 0,
        'lds_matched': 1,
    }


def test_common_rows_cover_what_the_network_sees():
    image = dict(ori_shape=(590, 1640), crop=(0, 270, 1640, 590))
    rows = common_rows(image, num_rows=32)
    assert rows.tolist() == list(range(275, 590, 10))
    del image['crop']
    rows = common_rows(image, num_rows=2)
    assert rows.tolist() == [147.5, 442.5]


def test_agreement_with_another_model(tmp_path):
    lanes = [lane(400, slope=0.4), lane(1200, slope=-0.4)]
    other = [points + np.float32([6, 0]) for points in lanes]
    out = tmp_path / 'float' / 'lanes.json'
    assert (
        evaluate(
            LaneDump(str(out)),
            [
                sample(other, lanes, name='a/1.jpg'),
                sample([], [], name='a/2.jpg'),
            ],
        )
        == {}
    )
    saved = read_predictions(out)
    assert set(saved) == {'a/1.jpg', 'a/2.jpg'}
    for found, points in zip(saved['a/1.jpg'], other, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, points, atol=1e-3)
    text = json.loads(out.read_text())
    assert text['images']['a/1.jpg']['scores'] == [0.75, 0.75]

    # The annotations don't matter, and needn't be there.
    batch = [
        sample(other[:1], [], name='a/1.jpg'),
        sample([], lanes, name='a/2.jpg'),
    ]
    del batch[0]['gt_lanes']
    assert evaluate(
        CULaneMetric(reference=str(out), iou_thrs=(0.5,)), batch
    ) == pytest.approx(
        {
            'agreement/F1_50': 2 / 3,
            'agreement/precision_50': 1,
            'agreement/recall_50': 0.5,
        }
    )
    found = evaluate(LaneDistortionMetric(reference=str(out)), batch)
    assert found['agreement/lds'] == pytest.approx(15 / 2, abs=0.01)
    assert found['agreement/lds_matched'] == 0.5
    with pytest.raises(ValueError, match="has no image 'b'"):
        CULaneMetric(reference=str(out)).process(
            {}, [sample([], [], name='b')]
        )


def test_only_chosen_categories_count(tmp_path):
    """So that one pass over several sets is judged set by set."""
    good, other = lane(400), lane(1200)
    out = tmp_path / 'lanes.json'
    batch = [
        sample([good], [good], name='1', category='a'),
        sample([good], [other], name='2', category='b'),
        sample([], [good], name='3'),
    ]
    evaluate(LaneDump(str(out)), batch[:1])
    alone = evaluate(CULaneMetric(), batch[:1])
    assert evaluate(CULaneMetric(categories=['a']), batch) == alone
    assert 'a/F1_50' in alone
    # Images that don't count need no lanes in the reference.
    found = evaluate(CULaneMetric(categories=['a'], reference=str(out)), batch)
    assert found['agreement/F1_50'] == 1
    metric = LaneDistortionMetric(categories=['b'])
    assert evaluate(metric, batch) == evaluate(
        LaneDistortionMetric(), batch[1:2]
    )
    found = evaluate(
        LaneDistortionMetric(categories=['a'], reference=str(out)), batch
    )
    assert found['agreement/lds'] == pytest.approx(0, abs=1e-3)


def test_tusimple_counts_chosen_categories():
    truth = lane(600, low=710, high=160)
    kwargs = dict(h_samples=ROWS, shape=(720, 1280))
    # The other image has no rows, as those of CULane.
    found = evaluate(
        TuSimpleMetric(categories=['t'], prefix='t'),
        [
            sample([truth], [truth], name='1', category='t', **kwargs),
            sample([truth], [], name='2', category='c'),
        ],
    )
    assert found == {'t/accuracy': 1, 't/FP': 0, 't/FN': 0, 't/F1': 1}


def test_dump_for_the_official_tools(tmp_path):
    lanes = [lane(400, slope=0.4), lane(1200)]
    batch = [
        sample(lanes, [], name='clip/1.jpg'),
        sample([], [], name='clip/2.jpg'),
    ]
    evaluate(LaneDump(str(tmp_path / 'lines'), layout='culane'), batch)
    found = read_culane(tmp_path / 'lines' / 'clip' / '1.lines.txt')
    for points, expected in zip(found, lanes, strict=True):
        np.testing.assert_allclose(points, expected, atol=1e-3)
    assert (tmp_path / 'lines' / 'clip' / '2.lines.txt').read_text() == ''

    out = tmp_path / 'tusimple.json'
    evaluate(
        LaneDump(str(out), layout='tusimple'),
        [
            sample(
                [lane(600, low=710, high=300)],
                [],
                h_samples=ROWS,
                shape=(720, 1280),
                name=f'{number}.jpg',
            )
            for number in range(2)
        ],
    )
    first, second = map(json.loads, out.read_text().splitlines())
    assert (first['raw_file'], second['raw_file']) == ('0.jpg', '1.jpg')
    assert first['run_time'] < 200
    assert first['lanes'] == [[-2] * 14 + [600] * 42]


def test_dump_refuses_repeated_ids(tmp_path):
    with pytest.raises(ValueError, match='only 1 different ids'):
        evaluate(LaneDump(str(tmp_path / 'x.json')), [sample([], [])] * 2)
    with pytest.raises(ValueError, match="layout='xml'"):
        LaneDump('x', layout='xml')
    with pytest.raises(ValueError, match='has no h_samples'):
        evaluate(
            LaneDump(str(tmp_path / 'x'), layout='tusimple'), [sample([], [])]
        )


def test_refuses_bad_references(tmp_path):
    path = tmp_path / 'x.json'
    with pytest.raises(FileNotFoundError, match='LaneDump'):
        CULaneMetric(reference=str(path))
    path.write_text('{}')
    with pytest.raises(ValueError, match='not a file of predicted lanes'):
        CULaneMetric(reference=str(path))
    path.write_text('lanes')
    with pytest.raises(ValueError, match='is not a JSON file'):
        CULaneMetric(reference=str(path))


def test_refuses_samples_without_lanes():
    empty = {'img_id': 'a', 'ori_shape': (590, 1640)}
    with pytest.raises(ValueError, match='image a has no pred_lanes'):
        CULaneMetric().process({}, [empty])
    empty['pred_lanes'] = {'points': []}
    with pytest.raises(ValueError, match='image a has no gt_lanes'):
        CULaneMetric().process({}, [empty])
    with pytest.raises(ValueError, match='pixels of the input'):
        CULaneMetric().process({}, [sample([], [], lane_frame='input')])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(iou_thrs=()), 'iou_thrs'),
        (dict(iou_thrs=(1.0,)), 'iou_thrs'),
        (dict(num_workers=-1), 'num_workers=-1'),
        (dict(canvas=(0, 5)), 'canvas'),
    ],
)
def test_refuses_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CULaneMetric(**kwargs)


def test_registered():
    for metric in (
        CULaneMetric,
        CurveLanesMetric,
        LaneDistortionMetric,
        TuSimpleMetric,
    ):
        assert type(METRICS.build(dict(type=metric.__name__))) is metric
    assert METRICS.build(dict(type='LaneDump', out='x')).layout == 'json'


def test_benchmark_says_images_per_second(capsys):
    main(['--images', '4', '--num-workers', '0'])
    first, second = capsys.readouterr().out.splitlines()
    assert 'images/s by the clock with 0 processes, 4.0 lanes' in first
    assert 'images/s of one processor core' in second


def test_tusimple_counts_annotated_lanes_without_any_point():
    """The official script cannot match them: a miss each."""
    truth = lane(600, low=710, high=160)
    found = tusimple([truth], [truth], num_absent_lanes=1)
    assert found['accuracy'] == pytest.approx(0.5)
    assert (found['FP'], found['FN']) == (0, 0.5)
