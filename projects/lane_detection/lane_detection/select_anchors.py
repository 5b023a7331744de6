"""Choose the anchors of LaneATT that a training set uses.

``python -m lane_detection.select_anchors CONFIG --out anchors.json`` counts
how often each anchor of the config's head matches a lane of the augmented
training set, and writes the indices of the most frequent ones. Set the head's
``anchor_file`` to this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import Tensor

from .models.laneatt_targets import encode_lanes, match_anchors

__all__ = ['count_matches', 'main', 'most_frequent']


def count_matches(
    head: Any, sample: Any, *, positive: float, negative: float
) -> Tensor:
    """Return which anchors match a lane of one image, (N,), 0 or 1.

    Args:
        head: LaneATTHead with all anchors.
        sample: LaneDataSample.
        positive: See ``match_anchors``; LaneATT counts with 30 pixels.
        negative: See ``match_anchors``; LaneATT counts with 35 pixels.
    """
    targets = encode_lanes(
        sample,
        num_rows=head.num_rows,
        img_size=head.img_size,
        device=head.anchors.device,
    )
    labels, _ = match_anchors(
        head.anchors,
        targets,
        starts=head.starts,
        positive=positive,
        negative=negative,
    )
    return (labels == 1).long()


def most_frequent(counts: Tensor, *, keep: int) -> list[int]:
    """Return the indices of the largest counts, in ascending order.

    Raises:
        ValueError: If ``keep`` exceeds the number of anchors.
    """
    if keep > len(counts):
        raise ValueError(
            f'keep={keep} of {len(counts)} anchors: keep fewer, or omit '
            'anchor_file'
        )
    order = counts.argsort(descending=True, stable=True)[:keep]
    return sorted(order.tolist())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--keep', type=int, default=1000)
    parser.add_argument('--positive', type=float, default=30.0)
    parser.add_argument('--negative', type=float, default=35.0)
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope('mmdet')
    head = MODELS.build(
        dict(
            cfg.model.head,
            anchor_file=None,
            train_cfg=cfg.model.get('train_cfg'),
        )
    )
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    counts = torch.zeros(len(head.anchors), dtype=torch.long)
    for i in range(len(dataset)):
        counts += count_matches(
            head,
            dataset[i]['data_samples'],
            positive=args.positive,
            negative=args.negative,
        )
    args.out.write_text(
        json.dumps(most_frequent(counts, keep=args.keep)) + '\n'
    )
    print_log(
        f'{int((counts > 0).sum())} of {len(counts)} anchors match a lane in '
        f'{len(dataset)} images; {args.keep} written to {args.out}',
        logger='current',
    )


if __name__ == '__main__':
    main()
