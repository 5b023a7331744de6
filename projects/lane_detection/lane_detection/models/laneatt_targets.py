"""Training targets of LaneATT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import input_lanes
from .lane_anchors import row_heights
from .line_nms import line_distances
from .resample import lane_positions

__all__ = ['LaneRows', 'encode_lanes', 'match_anchors']


@dataclass(frozen=True, kw_only=True)
class LaneRows:
    """Lanes at common rows, row 0 at the lower border.

    Args:
        xs: (..., R), x in pixels of the input; anything where unknown.
        valid: (..., R), bool, the rows that a lane covers in the image: one
            contiguous piece.
    """

    xs: Tensor
    valid: Tensor

    @property
    def known(self) -> Tensor:
        """Rows whose x is known, inside or outside the image."""
        return self.xs.isfinite()


def encode_lanes(
    sample: Any,
    *,
    num_rows: int,
    img_size: tuple[int, int],
    device: torch.device,
) -> LaneRows:
    """Return the lanes of one image at the head's rows.

    Below its lowest point a lane continues linearly. It covers its lowest
    contiguous piece inside the image. LaneATT's own code counts all outside
    rows as bottom rows, which shifts lanes that also leave the image at their
    upper end.

    Args:
        sample: LaneDataSample.
        num_rows: R.
        img_size: (h, w) of the input.
        device: Device of the result.

    Returns:
        Lanes with at least two rows in the image, (G, R).
    """
    height, width = img_size
    rows = row_heights(num_rows).double().numpy() * height
    positions = [np.zeros((0, num_rows))]
    pieces = [np.zeros((0, num_rows), dtype=bool)]
    for points in input_lanes(sample):
        xs = lane_positions(np.asarray(points), rows, extend_down=True)
        piece = _lowest_piece((xs >= 0) & (xs < width))
        if piece.sum() >= 2:
            positions.append(xs[None])
            pieces.append(piece[None])
    return LaneRows(
        xs=torch.from_numpy(np.concatenate(positions)).float().to(device),
        valid=torch.from_numpy(np.concatenate(pieces)).to(device),
    )


def match_anchors(
    anchors: Tensor,
    targets: LaneRows,
    *,
    starts: Tensor,
    positive: float,
    negative: float,
) -> tuple[Tensor, Tensor]:
    """Assign lanes to anchors by their mean distance over common rows.

    Common rows reach from the higher of both starts to the lane's end.
    A lane without a close anchor stays unassigned.

    Args:
        anchors: (N, R), x in pixels.
        targets: Lanes, (G, R).
        starts: (N,), first row of each anchor.
        positive: Distance in pixels below which an anchor matches a lane.
        negative: Distance in pixels above which it is background.

    Returns:
        Labels, (N,): 1 lane, 0 background, -1 neither; and the index of the
        nearest lane, (N,).
    """
    count, num_rows = anchors.shape
    if len(targets.xs) == 0:
        return starts.new_zeros(count), starts.new_zeros(count)
    rows = torch.arange(num_rows, device=anchors.device)
    distances = line_distances(
        anchors,
        targets.xs.nan_to_num(),
        valid=rows >= starts[:, None],
        other_valid=targets.valid,
    )
    nearest, index = distances.min(dim=1)
    labels = torch.full_like(index, -1)
    labels[nearest < positive] = 1
    labels[nearest > negative] = 0
    return labels, index


def _lowest_piece(inside: np.ndarray) -> np.ndarray:
    """Keep the first contiguous run of True."""
    piece = np.zeros_like(inside)
    if inside.any():
        first = int(inside.argmax())
        stops = np.flatnonzero(~inside[first:])
        end = first + int(stops[0]) if len(stops) else len(inside)
        piece[first:end] = True
    return piece
