"""Pictures of several models on the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from taskptq.engine.datasets import leaf_datasets

from .visualization import draw_lanes, draw_sample

__all__ = [
    'Frames',
    'compare_foregrounds',
    'draw_comparison',
    'foreground_maps',
    'input_image',
    'predict',
    'run_heads',
]

TILE = (4.4, 1.75)


class Frames:
    """Frames of one category, evenly spaced rather than chosen by result.

    Args:
        dataset: Built lane data set, or a concatenation of some.
        category: Category of the set to choose from.
        count: Number of frames.

    Raises:
        ValueError: If there is no such category, or too few frames.
    """

    def __init__(self, dataset: Any, *, category: str, count: int) -> None:
        leaves = {leaf.category: leaf for leaf in leaf_datasets(dataset)}
        if category not in leaves:
            raise ValueError(
                f'category={category!r}: choose one of '
                f'{sorted(str(name) for name in leaves)}'
            )
        self.dataset = leaves[category]
        total = len(self.dataset)
        if not 1 <= count <= total:
            raise ValueError(
                f'count={count}: choose from 1 to {total}, the '
                f'number of frames of {category!r}'
            )
        # Middles of equal parts.
        self.indices = [
            (2 * i + 1) * total // (2 * count) for i in range(count)
        ]

    def batch(self) -> dict[str, list[Any]]:
        """Read the frames again, as one batch."""
        samples = [self.dataset[index] for index in self.indices]
        return {
            key: [sample[key] for sample in samples]
            for key in ('inputs', 'data_samples')
        }


@torch.no_grad()
def predict(model: nn.Module, frames: Frames) -> list[Any]:
    """Return the data samples of frames, each with ``pred_lanes``."""
    return list(model.test_step(frames.batch()))


@torch.no_grad()
def run_heads(
    model: nn.Module, quantized: nn.Module, frames: Frames, *, adapter: Any
) -> dict[str, Any]:
    """Run a float and a quantized model on the same frames.

    Args:
        model: Float model.
        quantized: Quantized copy of it.
        frames: Their inputs.
        adapter: The float model's adapter.

    Returns:
        ``heads_float``, ``heads_quant`` and ``metas``, lists of one batch
        each, as ``analysis.head_noise`` takes them.
    """
    batch = frames.batch()
    heads = adapter.forward_heads(model, batch)
    return {
        'heads_float': [heads],
        'heads_quant': [
            adapter.forward_like(quantized, frames.batch(), heads=heads)
        ],
        'metas': [[sample.metainfo for sample in batch['data_samples']]],
    }


def foreground_maps(
    weights: Mapping[str, Tensor], *, index: int = 0
) -> dict[str, np.ndarray]:
    """Return the foreground of a frame as maps.

    Args:
        weights: Outputs of an adapter's ``foreground_proxy``.
        index: The frame's place in the batch.

    Returns:
        Names of the heads that share a map -> weights in [0, 1], (h, w); the
        maximum over the maps of several lanes.

    Raises:
        ValueError: If the model has no maps: its heads list lanes.
    """
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, weight in weights.items():
        if weight.dim() == 4 and min(weight.shape[-2:]) > 1:
            found.setdefault(id(weight), ([], weight))[0].append(name)
    if not found:
        raise ValueError(
            f'the heads {", ".join(weights)} have a weight for each lane or '
            'anchor, not a map: choose a segmentation or keypoint model'
        )
    return {
        ', '.join(names): weight[index].amax(dim=0).float().cpu().numpy()
        for names, weight in found.values()
    }


def compare_foregrounds(
    confidence: Mapping[str, Tensor],
    proximity: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
) -> dict[str, dict[str, float | None]]:
    """Compare two foregrounds of the same heads.

    Args:
        confidence: Outputs of an adapter's ``foreground_proxy``.
        proximity: Those of its ``decoded_proxy``.
        heads: The heads that both broadcast to.

    Returns:
        By head the means of both, and their ``correlation`` over all
        positions, None where one of them is constant.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in proximity:
        both = torch.stack(
            [
                weight[name].float().expand_as(heads[name]).flatten()
                for weight in (confidence, proximity)
            ]
        ).double()
        constant = bool((both.std(dim=1) == 0).any())
        found[name] = {
            'confidence': float(both[0].mean()),
            'proximity': float(both[1].mean()),
            'correlation': (
                None if constant else float(torch.corrcoef(both)[0, 1])
            ),
        }
    return found


def read_image(sample: Any) -> np.ndarray:
    """Read the file of a frame, (h, w, 3), BGR.

    Raises:
        FileNotFoundError: If it is missing.
    """
    image = cv2.imread(str(sample.img_path))
    if image is None:
        raise FileNotFoundError(f'{sample.img_path} cannot be read')
    return image


def input_image(sample: Any) -> np.ndarray:
    """Return the network's view of a frame, (h, w, 3), RGB, resized.

    Args:
        sample: LaneDataSample, with ``crop`` and ``ori_shape``.
    """
    image = read_image(sample)
    height, width = sample.ori_shape[:2]
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    left, top, right, bottom = np.round(np.array(sample.crop) * scale).astype(
        int
    )
    return np.ascontiguousarray(image[top:bottom, left:right, ::-1])


def draw_lines(
    sample: Any, lanes: InstanceData | None, *, width: int
) -> np.ndarray:
    """Draw lanes, or else the annotations, on a frame; RGB."""
    image = read_image(sample)
    if lanes is None:
        scale = (
            image.shape[1] / sample.ori_shape[1],
            image.shape[0] / sample.ori_shape[0],
        )
        drawn = draw_lanes(
            image, sample.gt_lanes.points, width=width, scale=scale
        )
    else:
        shown = sample.clone()
        shown.pred_lanes = lanes
        drawn = draw_sample(image, shown, truth=False, width=width)
    return np.ascontiguousarray(drawn[..., ::-1])


def draw_comparison(
    columns: Mapping[str, Sequence[Any]],
    out: str | Path,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    width: int = 9,
) -> Path:
    """Draw one row for each frame: annotations, then each model's lanes.

    Args:
        columns: Name of a model -> its data samples of the frames.
        out: PNG file; its folder is created.
        captions: Name of a model -> a line below each of its pictures.
        width: Line width in pixels of a frame.

    Returns:
        The path.

    Raises:
        ValueError: If the models differ in their number of frames.
    """
    from matplotlib.figure import Figure

    counts = {len(samples) for samples in columns.values()}
    if len(counts) != 1:
        raise ValueError(
            f'the models have {sorted(counts)} frames: give equally many'
        )
    truth = next(iter(columns.values()))
    figure = Figure(
        figsize=(TILE[0] * (1 + len(columns)), TILE[1] * len(truth)),
        layout='constrained',
    )
    grid = figure.subplots(len(truth), 1 + len(columns), squeeze=False)
    for row, sample in enumerate(truth):
        show(
            grid[row][0],
            draw_lines(sample, None, width=width),
            title='' if row else 'annotations',
        )
        for place, (name, samples) in enumerate(columns.items(), start=1):
            lanes = samples[row].pred_lanes
            lines = (captions or {}).get(name)
            show(
                grid[row][place],
                draw_lines(sample, lanes, width=width),
                title='' if row else name,
                caption=lines[row] if lines else '',
            )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, format='png')
    return out


def show(
    axes: Any, image: np.ndarray, *, title: str, caption: str = ''
) -> None:
    """Draw one picture."""
    axes.imshow(image)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(caption, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
