"""Lines of queries: those that are decoded, with a gradient."""

import numpy as np
import pytest
import test_bezier
import test_laneatt
import test_lstr
import torch
from drawn_roads import make_samples

from lane_detection.geometry import to_input
from lane_detection.models import LSTRHead
from lane_detection.models.bezier import bernstein, cubic_rows, sample_cubic
from lane_detection.models.lane_head import soft_presence
from lane_detection.testing import lane_sample, road_lanes
from taskptq.methods.selective_focus.soft_distortion import soft_distortion


def bezier():
    head = test_bezier.build().head
    sample = lane_sample(road_lanes(), img_shape=test_bezier.SIZE)
    return head, test_bezier.perfect_outputs(head, sample), sample.metainfo


def laneatt():
    head = test_laneatt.build().head
    sample = lane_sample(road_lanes(), img_shape=test_laneatt.SIZE)
    outputs = test_laneatt.perfect_outputs(head, sample)
    return head, outputs, sample.metainfo


def lstr():
    head = LSTRHead(8, embed_dims=16)
    sample = make_samples((360, 640))[0]
    found = {k: v[:1] for k, v in test_lstr.head_outputs().items()}
    return head, found, sample.metainfo


MODELS = pytest.mark.parametrize('make', [bezier, laneatt, lstr])


@MODELS
@torch.no_grad()
def test_lines_are_those_that_are_decoded(make):
    head, outputs, meta = make()
    rows, presence = head.soft_lines(outputs)
    by_row = presence if presence.dim() == 3 else presence[..., None]
    by_row = by_row.expand_as(rows)[0].numpy()
    lanes = head.decode(outputs, [meta])[0].points
    assert len(lanes) == (by_row.max(axis=1) > 0.5).sum() == 4
    height, width = meta['img_shape'][:2]
    heights = np.linspace(0, height, rows.shape[-1])
    for lane in lanes:
        x, y = to_input(lane, meta)[::-1].T
        inside = (heights >= y.min()) & (heights <= y.max())
        wanted = np.interp(heights[inside], y, x) / width
        gaps = np.abs(rows[0].numpy()[:, inside] - wanted).mean(axis=1)
        best = gaps.argmin()
        assert gaps[best] < 0.01
        assert by_row[best][inside].mean() > 0.9


@MODELS
def test_gradient_leads_back_to_the_float_model(make):
    head, outputs, _ = make()
    rows, presence = (t.detach() for t in head.soft_lines(outputs))
    torch.manual_seed(0)
    moved = {
        name: (value + 0.05 * torch.randn_like(value)).requires_grad_()
        for name, value in outputs.items()
    }

    def distance():
        found = head.soft_lines(moved)
        return soft_distortion(
            found[0],
            rows,
            presence=found[1],
            target_presence=presence,
            gamma=30 / 1640,
        )

    first = distance()
    optimizer = torch.optim.Adam(moved.values(), lr=0.005)
    for _ in range(30):
        optimizer.zero_grad()
        distance().backward()
        assert all(value.grad.isfinite().all() for value in moved.values())
        assert all(value.grad.abs().sum() > 0 for value in moved.values())
        optimizer.step()
    assert distance() < 0.7 * first


def test_presence_is_one_half_at_the_threshold():
    logits = torch.tensor([0.95]).logit()
    assert soft_presence(logits, score_thr=0.95).item() == pytest.approx(0.5)
    assert soft_presence(logits, score_thr=0.5).item() == pytest.approx(0.95)


def test_rows_of_cubic_curves():
    control = test_bezier.CURVE
    rows = cubic_rows(control, num_rows=11)
    fine = sample_cubic(control, num_samples=20001).numpy()[::-1]
    heights = np.linspace(0, 1, 11).clip(fine[0, 1], fine[-1, 1])
    wanted = np.interp(heights, fine[:, 1], fine[:, 0])
    np.testing.assert_allclose(rows.numpy(), wanted, atol=1e-4)
    # Upside down, and curves that don't rise at all.
    flipped = cubic_rows(control.flip(0), num_rows=11)
    torch.testing.assert_close(flipped, rows, atol=1e-4, rtol=0)
    flat = torch.tensor([[[0.2, 0.5]] * 4, [[5.0, 0.5]] * 4])
    assert cubic_rows(flat, num_rows=3).tolist() == [
        pytest.approx([0.2] * 3),
        [2] * 3,
    ]


def test_derivative_of_a_row_is_that_of_the_curve():
    control = test_bezier.CURVE.clone().requires_grad_()
    (x,) = cubic_rows(control, num_rows=3)[1:2]
    x.backward()
    moved = test_bezier.CURVE
    numeric = torch.zeros_like(moved)
    for index in np.ndindex(4, 2):
        for sign in (1, -1):
            other = moved.clone()
            other[index] += sign * 1e-4
            fine = sample_cubic(other, num_samples=20001).numpy()[::-1]
            numeric[index] += sign * np.interp(0.5, fine[:, 1], fine[:, 0])
    torch.testing.assert_close(
        control.grad, numeric / 2e-4, atol=2e-2, rtol=2e-2
    )
    assert bernstein(torch.tensor([[0.5]])).shape == (1, 1, 4)
