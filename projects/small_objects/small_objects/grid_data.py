"""Predictions of grid heads on real images, at the objects."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from small_objects.analysis.gradient_variance import (
    GradientVariance,
    watch_outputs,
)
from taskptq.apis import build_model, load_config
from taskptq.engine.builder import build_adapter
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.grid_adapters import unpack_regions
from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.prepare.patterns import matches

REGRESSION = r're:(.*\.)?(rpn|retina|atss|gfl|conv|fc)_reg'
FOREGROUND = 0.5


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Grid logits of one head where the float model sees objects.

    Args:
        grid: The head's grid.
        logits: Logits of the float model, (N, 4, n + 1).
        changed: Logits of the quantized model at the same positions, or None.
        decode: Coordinates (N, 4) -> boxes (N, 4) in pixels.
    """

    grid: Any
    logits: Tensor
    changed: Tensor | None
    decode: Callable[[Tensor], Tensor]


def load_float(config: str, checkpoint: str) -> tuple[Config, nn.Module]:
    """Read a config and build its float model with weights."""
    cfg = load_config(config)
    path = local_file(checkpoint)
    model = build_model(cfg)
    load_float_weights(model, read_checkpoint(path), path=path)
    return cfg, model.eval()


def training_batches(
    cfg: Config, *, num_images: int, seed: int
) -> Sequence[Any]:
    """Return batches of training images, through the test pipeline."""
    return build_calibration(
        CalibrationConfig(num_images=num_images, seed=seed),
        source=EvaluationSource.from_config(cfg.test_dataloader),
        default=cfg.train_dataloader.dataset,
    )


@torch.no_grad()
def foreground_logits(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    quant_model: nn.Module | None = None,
    threshold: float = FOREGROUND,
) -> dict[str, Foreground]:
    """Collect the logits of all grid heads on their foreground.

    Args:
        model: Float model.
        batches: Collated batches.
        quant_model: Quantized model to run on the float model's regions.
        threshold: Minimum confidence of a foreground position.

    Returns:
        Head -> its foreground; levels of a pyramid are one head.

    Raises:
        ValueError: If the model has no grid head, or nothing is foreground.
    """
    adapter = build_adapter(model)
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    for batch in batches:
        heads = adapter.forward_heads(model, batch)
        split = getattr(adapter, 'box_distributions', lambda _: {})
        boxes = split(heads)
        others = {}
        if quant_model is not None:
            run = getattr(adapter, 'forward_like', None)
            others = split(
                adapter.forward_heads(quant_model, batch)
                if run is None
                else run(quant_model, batch, heads=heads)
            )
        weights = adapter.foreground_proxy(heads)
        full = split(
            {name: weights[name].expand_as(heads[name]) for name in boxes}
        )
        for name, logits in boxes.items():
            chosen = full[name][..., 0, 0] > threshold
            priors = priors_of(model, name, heads, logits)
            parts.setdefault(name.partition('.')[0], []).append(
                (
                    logits[chosen],
                    others.get(name, logits)[chosen],
                    priors.expand(*chosen.shape, -1)[chosen],
                )
            )
    if not parts:
        raise ValueError(f'{type(model).__name__} has no grid head')
    return {
        name: merge(model, name, found, quant_model is not None)
        for name, found in parts.items()
    }


def head_of(model: nn.Module, name: str) -> Any:
    """Return the head behind the name of an output."""
    if name.startswith('rpn'):
        return model.rpn_head
    if hasattr(model, 'roi_head'):
        return model.roi_head.bbox_head
    return model.bbox_head


def priors_of(
    model: nn.Module, name: str, heads: dict[str, Tensor], logits: Tensor
) -> Tensor:
    """Return the priors that a head's boxes are relative to.

    Args:
        model: The detector.
        name: Name of the output.
        heads: All outputs.
        logits: The output's distributions.

    Returns:
        Regions or anchors (x1, y1, x2, y2), or points (x, y, stride) on the
        last axis; the other axes broadcast to the positions.
    """
    if 'rois' in heads and name == 'box':
        return unpack_regions(heads['rois'])[:, None, 1:]
    head = head_of(model, name)
    level = int(name.rpartition('.')[2])
    anchors, height, width = logits.shape[1:4]
    generator = head.prior_generator
    priors = generator.single_level_grid_priors(
        (height, width), level, device=logits.device
    )
    priors = priors[:, :4].view(height, width, anchors, -1).movedim(2, 0)
    if hasattr(head.bbox_coder, 'coder'):
        return priors[None]
    # Sides of a box are in strides from a point, or from an anchor's center.
    if priors.shape[-1] == 4:
        priors = (priors[..., :2] + priors[..., 2:]) / 2
    stride = priors.new_full(
        (*priors.shape[:-1], 1), generator.strides[level][0]
    )
    return torch.cat([priors, stride], dim=-1)[None]


def merge(
    model: nn.Module,
    name: str,
    found: Sequence[tuple[Tensor, ...]],
    changed: bool,
) -> Foreground:
    """Join the batches and levels of a head.

    Raises:
        ValueError: If nothing is foreground.
    """
    logits, others, priors = (
        torch.cat(one) for one in zip(*found, strict=True)
    )
    if not len(logits):
        raise ValueError(
            f'{name}: no place is foreground; give a trained '
            'checkpoint or more images'
        )
    head = head_of(model, name)

    def decode(values: Tensor) -> Tensor:
        if priors.shape[-1] == 3:
            return decode_sides(priors.to(values), values)
        return head.bbox_coder.coder.decode(priors.to(values), values)

    return Foreground(
        grid=grid_of(head),
        logits=logits,
        changed=others if changed else None,
        decode=decode,
    )


def grid_of(head: Any) -> Any:
    """Return a head's grid; mmdet's GFL has the points 0, 1, ... strides."""
    if hasattr(head, 'box_grid'):
        return head.box_grid
    return BoxGrid(
        float(head.reg_max),
        beta=0.0,
        num_intervals=int(head.reg_max),
        one_sided=True,
    )


def decode_sides(points: Tensor, sides: Tensor) -> Tensor:
    """Convert distances in strides to boxes.

    Args:
        points: (N, 3), x, y and stride in pixels.
        sides: (N, 4), left, top, right, bottom.
    """
    scaled = sides * points[:, 2:]
    center = points[:, :2]
    return torch.cat([center - scaled[:, :2], center + scaled[:, 2:]], dim=1)


@torch.no_grad()
def head_seconds(
    models: Sequence[nn.Module], batch: Any, *, repeats: int
) -> list[float]:
    """Time the heads of detectors on their own features of one batch.

    This includes everything after the neck, also decoding and suppression.
    Models take turns, and each one's best time counts.

    Args:
        models: Float detectors in eval mode.
        batch: Collated batch.
        repeats: Number of turns.

    Returns:
        Processor time of each model in seconds.
    """
    prepared = []
    for model in models:
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        features = model.extract_feat(data['inputs'])
        prepared.append((model, features, data['data_samples']))
    best = [math.inf] * len(prepared)
    for _ in range(repeats):
        for index, (model, features, samples) in enumerate(prepared):
            start = time.process_time()
            run_heads(model, features, samples)
            best[index] = min(best[index], time.process_time() - start)
    return best


def run_heads(model: nn.Module, features: Any, samples: Any) -> None:
    """Run everything after the neck."""
    if not hasattr(model, 'roi_head'):
        model.bbox_head.predict(features, samples, rescale=True)
        return
    proposals = model.rpn_head.predict(features, samples, rescale=False)
    model.roi_head.predict(features, proposals, samples, rescale=True)


def training_data(
    cfg: Config, *, num_batches: int, seed: int
) -> Iterator[Any]:
    """Yield batches of the training loader, augmented as in training."""
    loader = Runner.build_dataloader(
        {
            **cfg.train_dataloader,
            'num_workers': 0,
            'persistent_workers': False,
        },
        seed=seed,
    )
    while num_batches > 0:
        for batch in loader:
            yield batch
            num_batches -= 1
            if num_batches == 0:
                return


def gradient_variances(
    model: nn.Module, batches: Iterator[Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure the localization gradients of each regression layer.

    Args:
        model: Float detector; it ends in eval mode.
        batches: Batches of the training loader.

    Returns:
        Layer -> ``GradientVariance.to_dict``; sizes are in pixels of the
        network's input.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if matches(name, REGRESSION)
    }
    found = {name: GradientVariance() for name in layers}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    for batch in batches:
        add_gradients(model, batch, layers, found)
    model.eval()
    return {name: one.to_dict() for name, one in found.items()}


def add_gradients(
    model: nn.Module,
    batch: Any,
    layers: dict[str, nn.Module],
    found: dict[str, GradientVariance],
) -> None:
    """Add the gradients of one batch."""
    data = model.data_preprocessor(batch, True)
    rois: list[Tensor] = []
    with ExitStack() as stack:
        watched = {
            name: stack.enter_context(watch_outputs(layer))
            for name, layer in layers.items()
        }
        extractor = getattr(
            getattr(model, 'roi_head', None), 'bbox_roi_extractor', None
        )
        if extractor is not None:
            handle = extractor.register_forward_pre_hook(
                lambda _module, args: rois.append(args[1])
            )
            stack.callback(handle.remove)
        loss, _ = model.parse_losses(
            model.loss(data['inputs'], data['data_samples'])
        )
    flat = [output for outputs in watched.values() for output in outputs]
    gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    for name, outputs in watched.items():
        own = [g for g in (next(gradients) for _ in outputs) if g is not None]
        # A dense detector divides by its varying number of positives.
        factor = 1.0
        if extractor is None:
            factor = float(sum((g.abs().amax(1) > 0).sum() for g in own))
        for gradient in own:
            sizes = (
                region_sizes(rois[0])
                if gradient.dim() == 2
                else place_sizes(data, gradient, priors_count(model, name))
            )
            found[name].add(
                gradient,
                weight=layers[name].weight,
                sizes=sizes,
                factor=factor,
            )


def priors_count(model: nn.Module, name: str) -> int:
    """Return the number of priors per position."""
    head = model.get_submodule(name.rpartition('.')[0])
    return int(getattr(head, 'num_base_priors', 1))


def region_sizes(rois: Tensor) -> Tensor:
    """Return the roots of regions' areas in pixels, (R, 1)."""
    width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
    return (width * height).clamp(min=0).sqrt()[:, None]


def place_sizes(
    data: dict[str, Any], gradient: Tensor, num_priors: int
) -> Tensor:
    """Return the size of the object at each position of a map.

    This is the smallest box that contains it, or else the nearest box.

    Args:
        data: Preprocessed batch.
        gradient: (N, C, H, W).
        num_priors: Number of priors per position.

    Returns:
        Roots of areas in pixels, (N * H * W, priors).
    """
    height, width = gradient.shape[2:]
    stride = data['inputs'].shape[-1] / width
    y = (torch.arange(height) + 0.5) * stride
    x = (torch.arange(width) + 0.5) * stride
    centers = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)
    centers = centers.flatten(0, 1).flip(-1).to(gradient.device)
    sizes = [
        sizes_at(centers, sample.gt_instances.bboxes)
        for sample in data['data_samples']
    ]
    return torch.cat(sizes)[:, None].expand(-1, num_priors)


def sizes_at(centers: Tensor, boxes: Any) -> Tensor:
    """Return the size of the object at each point.

    Args:
        centers: (P, 2), x and y.
        boxes: (G, 4), x1, y1, x2, y2.

    Returns:
        (P,), infinite without boxes.
    """
    boxes = getattr(boxes, 'tensor', boxes)
    if not len(boxes):
        return centers.new_full((len(centers),), torch.inf)
    low, high = boxes[:, :2], boxes[:, 2:]
    area = (high - low).prod(dim=1)
    inside = ((centers[:, None] >= low) & (centers[:, None] <= high)).all(-1)
    distance = torch.cdist(centers, (low + high) / 2).double()
    rank = torch.where(
        inside, area.double().expand_as(distance), 1e12 + distance
    )
    return area[rank.argmin(dim=1)].sqrt()
