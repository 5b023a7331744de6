"""Two straight-forward roads with known lanes, and what tests ask of them."""

import copy

import cv2
import numpy as np
import torch

SHAPE = (590, 1640)
CROP = (0.0, 250.0, 1640.0, 590.0)
# (x at the bottom, x at the top, sideways bend) of each lane, by slot
ROADS = [
    {
        0: (80, 700, 0),
        1: (520, 790, 20),
        2: (1150, 860, -30),
        3: (1600, 960, 10),
    },
    {1: (450, 760, -40), 2: (1240, 900, 60)},
]


def road_lanes(road):
    """Return the lanes, (n, 2) in original pixels, from the bottom up."""
    lanes = []
    for bottom, top, bend in road.values():
        share = np.linspace(0, 1, 31)
        x = bottom + (top - bottom) * share + bend * np.sin(np.pi * share)
        y = 589 - 310 * share
        lanes.append(np.stack([x, y], axis=1).astype(np.float32))
    return lanes


def make_samples(size, *, roads=ROADS):
    """Return LaneDataSamples of the roads for an input of (h, w)."""
    from mmengine.structures import InstanceData

    from lane_detection.structures import LaneDataSample

    samples = []
    for i, road in enumerate(roads):
        sample = LaneDataSample(
            metainfo={
                'img_id': f'{i}.jpg',
                'ori_shape': SHAPE,
                'img_shape': size,
                'crop': CROP,
                'lane_frame': 'original',
                'category': None,
                'h_samples': None,
            }
        )
        sample.gt_lanes = InstanceData(
            points=road_lanes(road), slots=torch.tensor(list(road))
        )
        samples.append(sample)
    return samples


def make_batch(size, *, roads=ROADS):
    """Return inputs, uint8 images that show the lanes, and data samples."""
    from lane_detection.geometry import input_lanes

    samples = make_samples(size, roads=roads)
    images = []
    for sample in samples:
        image = np.full((*size, 3), 90, np.uint8)
        for lane in input_lanes(sample):
            points = np.round(lane).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(image, [points], False, (230, 230, 230), 2)
        images.append(torch.from_numpy(image).permute(2, 0, 1))
    return {'inputs': images, 'data_samples': samples}


def preprocessor():
    return {
        'type': 'LaneDataPreprocessor',
        'mean': [90.0] * 3,
        'std': [60.0] * 3,
    }


def lane_iou(a, b, *, width=30):
    """Return the IoU of two polylines drawn in the original image."""
    masks = []
    for points in (a, b):
        canvas = np.zeros(SHAPE, np.uint8)
        cv2.polylines(
            canvas,
            [np.round(points).astype(np.int32).reshape(-1, 1, 2)],
            False,
            1,
            width,
        )
        masks.append(canvas > 0)
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def assert_same_lanes(instances, lanes, *, iou):
    """Check that each lane has its own prediction, bottom up."""
    assert len(instances.points) == len(lanes) == len(instances.scores)
    for points in instances.points:
        assert points.dtype == np.float32
        assert np.all(np.diff(points[:, 1]) <= 0)
    for lane in lanes:
        best = max(lane_iou(lane, points) for points in instances.points)
        assert best > iou


def total_loss(model, batch):
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    return sum(v for k, v in losses.items() if 'loss' in k), losses


def overfit(model, batch, *, steps, lr):
    """Train on one batch; returns the losses before and after."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    history = []
    for _ in range(steps):
        loss, _ = total_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(float(loss.detach()))
    model.eval()
    return history[0], min(history[-3:])


def assert_pure_decode(model, batch):
    """Check that decoding calls no module and changes nothing."""
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    with torch.no_grad():
        outputs = model(data['inputs'], mode='tensor')
    kept = {name: value.clone() for name, value in outputs.items()}
    metas = [sample.metainfo for sample in data['data_samples']]
    calls = []
    handles = [
        m.register_forward_hook(lambda *_: calls.append(1))
        for m in model.modules()
    ]
    first, second = (model.decode(outputs, metas) for _ in range(2))
    for handle in handles:
        handle.remove()
    assert not calls
    for name, value in kept.items():
        assert torch.equal(outputs[name], value)
    predicted = model(**data, mode='predict')
    for one, two, sample in zip(first, second, predicted, strict=True):
        assert len(one.points) == len(two.points)
        for a, b, c in zip(
            one.points, two.points, sample.pred_lanes.points, strict=True
        ):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-2)


def assert_proxies(model, outputs):
    """Check names, range and shape of the foreground weights."""
    proxies = model.head.foreground_proxy(outputs)
    assert set(proxies) == set(outputs) == set(model.head_names)
    for name, weight in proxies.items():
        assert not weight.requires_grad
        assert weight.min() >= 0
        assert weight.max() <= 1
        assert (
            torch.broadcast_shapes(weight.shape, outputs[name].shape)
            == outputs[name].shape
        )


def prepare_w8a8(model, batch):
    """Quantize to 8 bit on one batch; returns the report and both outputs."""
    from taskptq.calibration import calibrate
    from taskptq.core.switches import quantizing
    from taskptq.prepare import QConfig, prepare

    model.eval()
    inputs = model.data_preprocessor(copy.deepcopy(batch), False)['inputs']
    with torch.no_grad():
        before = model(inputs, mode='tensor')
    report = prepare(model, QConfig.from_dict({}))
    calibrate(model, [inputs], forward=lambda m, x: m(x, mode='tensor'))
    with torch.no_grad(), quantizing(model):
        after = model(inputs, mode='tensor')
    return report, before, after


def relative_error(before, after):
    return float((after - before).norm() / before.norm())
