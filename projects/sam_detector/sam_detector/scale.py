"""Measure the cost of reconstructing a full-size SAM.

    python -m sam_detector.scale --size vit_b --recipe w6a6_ptq4sam-l

runs calibration and a few reconstruction steps of every unit on noise, and
says how long the whole recipe would take, rewrites left out. Speed and memory
don't depend on the weights: without a checkpoint they are random. With
``--block sam.image_encoder.blocks.0`` that one is reconstructed alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from taskptq.calibration import calibrate
from taskptq.engine.builder import build_qconfig
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.engine.recipe_source import read_recipe
from taskptq.reconstruction import reconstruct
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.version import __version__

from .detector import SAMDetector
from .sam import SAM_SIZES
from .scale_config import of_blocks, without_detector

__all__ = ['main', 'measure', 'noise_batch', 'project']

GIB = 2**30
# Where Linux tells a process its own high-water mark.
STATUS = Path('/proc/self/status')


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Seconds and memory of reconstructing a full-size SAM'
    )
    parser.add_argument('--size', default='vit_b', choices=sorted(SAM_SIZES))
    parser.add_argument('--checkpoint', help='SAM file (default: random)')
    parser.add_argument(
        '--recipe',
        required=True,
        help='name such as sam_detector::w4a4_qdrop, or file that sets its '
        'parts',
    )
    parser.add_argument(
        '--num-images', type=positive, default=2, help='calibration images'
    )
    parser.add_argument(
        '--boxes', type=positive, default=8, help='prompts of each image'
    )
    parser.add_argument(
        '--steps', type=positive, default=20, help='steps of each unit'
    )
    parser.add_argument(
        '--batch-size', type=positive, default=1, help='images of a minibatch'
    )
    parser.add_argument(
        '--autocast', choices=['bfloat16'], help='mixed precision'
    )
    parser.add_argument(
        '--block',
        action='append',
        default=[],
        dest='blocks',
        metavar='NAME',
        help='reconstruct this block alone, all others float; may be given '
        'again (default: all)',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--project',
        type=positive,
        nargs=2,
        default=(32, 2000),
        metavar=('IMAGES', 'STEPS'),
        help='recipe to project to',
    )
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args(argv)


def noise_batch(seed: int, *, image_size: int, boxes: int) -> dict[str, Any]:
    """Make one image of noise with boxes to prompt with.

    Args:
        seed: The same seed gives the same batch.
        image_size: Side in pixels.
        boxes: Number of boxes.

    Returns:
        A collated batch: ``inputs`` and ``data_samples``.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(
        256,
        (1, 3, image_size, image_size),
        dtype=torch.uint8,
        generator=generator,
    )
    corner = torch.rand(boxes, 2, generator=generator) * 0.7
    side = 0.05 + torch.rand(boxes, 2, generator=generator) * 0.25
    gt = InstanceData(
        bboxes=torch.cat([corner, corner + side], dim=1) * image_size,
        labels=torch.zeros(boxes, dtype=torch.long),
    )
    sample = DetDataSample(
        metainfo={
            'ori_shape': (image_size, image_size),
            'img_shape': (image_size, image_size),
            'sam_views': [[0, 0, image_size, image_size]],
            'sam_view_sizes': [[image_size, image_size]],
        }
    )
    sample.gt_instances = gt
    return {'inputs': {'sam': [image]}, 'data_samples': [sample]}


def build(args: argparse.Namespace) -> nn.Module:
    """Build SAM behind ground-truth-box prompts, without a detector."""
    image_size = SAM_SIZES[args.size].image_size
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = SAMDetector(
        sam={
            'type': 'PromptedSAM',
            'size': args.size,
            'checkpoint': args.checkpoint,
        },
        prompts=('gt_box',),
        data_preprocessor={
            'type': 'SAMDataPreprocessor',
            'image_size': image_size,
        },
    )
    return model.to(args.device).eval()


def recipe_of(
    recipe: Mapping[str, Any], args: argparse.Namespace
) -> ReconstructionConfig:
    """Read the recipe's reconstruction, shortened; no unit ends early."""
    settings = dict(recipe.get('reconstruction') or {})
    settings.pop('loss', None)
    settings |= {
        'steps': args.steps,
        'batch_size': args.batch_size,
        'skip_below': 0,
        'patience': None,
        'autocast': args.autocast,
    }
    return ReconstructionConfig.from_dict(settings)


def peak_bytes(device: str) -> int | None:
    """Return the peak memory of this process, or of its GPU.

    None if the system does not report it (Windows).
    """
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        for line in STATUS.read_text(encoding='utf-8').splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seconds_of_forward(
    model: nn.Module, batch: dict[str, Any], *, device: str
) -> float:
    """Time one forward of the whole model, synchronizing a GPU."""
    start = time.perf_counter()
    with torch.no_grad():
        run_batch(model, batch)
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare, calibrate and reconstruct.

    Returns:
        Plain figures: seconds, bytes (None if unknown), and the results of
        the units.

    Raises:
        FileNotFoundError: If there is no such recipe file or SAM file.
        SettingError: If there is no such recipe, or it sets no ``qconfig``.
        ValueError: If there is no such block.
    """
    recipe = read_recipe(args.recipe)
    model = build(args)
    image_size = SAM_SIZES[args.size].image_size
    batches = [
        noise_batch(seed, image_size=image_size, boxes=args.boxes)
        for seed in range(args.num_images)
    ]
    qconfig = without_detector(recipe['qconfig'])
    prepare_in_place(model, build_qconfig(qconfig))
    forward_seconds = seconds_of_forward(model, batches[0], device=args.device)
    calibration = calibrate(model, batches, forward=run_batch)
    if args.blocks:
        model = build(args)
        qconfig = of_blocks(qconfig, args.blocks, model=model)
        prepare_in_place(model, build_qconfig(qconfig))
        calibrate(model, batches, forward=run_batch)
    config = recipe_of(recipe, args)
    report = reconstruct(
        model, batches, config, forward=run_batch, progress=False
    )
    return {
        'size': args.size,
        'weights': args.checkpoint or 'random',
        'blocks': args.blocks or 'all',
        'num_images': args.num_images,
        'boxes': args.boxes,
        'steps': args.steps,
        'batch_size': args.batch_size,
        'autocast': args.autocast,
        'device': args.device,
        'threads': torch.get_num_threads(),
        'forward_seconds': forward_seconds,
        'calibration_seconds': calibration.seconds,
        'reconstruction_seconds': report.seconds,
        'num_forwards': report.num_forwards,
        'peak_bytes': peak_bytes(args.device),
        'units': [unit.to_dict() for unit in report.units],
    }


def project(found: dict[str, Any], *, images: int, steps: int) -> float:
    """Estimate the seconds of a longer recipe.

    The time per step stays; everything else (forwards of the whole model,
    captures, ranges) grows with the number of images.

    Args:
        found: Result of :func:`measure`.
        images: Calibration images.
        steps: Steps of each unit.

    Returns:
        Seconds of calibration and reconstruction.
    """
    stepping = sum(unit['seconds'] for unit in found['units'])
    rest = found['reconstruction_seconds'] - stepping
    rest += found['calibration_seconds']
    return (
        stepping * steps / found['steps'] + rest * images / found['num_images']
    )


def lines(found: dict[str, Any], projected: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    peak = found['peak_bytes']
    memory = 'unknown here' if peak is None else f'{peak / GIB:.1f} GiB'
    text = [
        f'{unit["name"]:60s} {unit["seconds"]:8.1f} s, loss '
        f'{unit["loss_start"]:.4f} -> {unit["loss_end"]:.4f}'
        for unit in found['units']
    ]
    text += [
        f'forward of the whole model: {found["forward_seconds"]:.1f} s',
        f'forwards in reconstruction: {found["num_forwards"]:.1f} of each '
        'image',
        f'calibration {found["calibration_seconds"]:.1f} s, reconstruction '
        f'{found["reconstruction_seconds"]:.1f} s',
        f'peak memory: {memory}',
        f'projected to {projected["images"]} images x {projected["steps"]} '
        f'steps: {projected["seconds"] / 3600:.2f} h',
    ]
    return text


def commit() -> str | None:
    """Return the commit of the source tree, or None.

    A copy installed inside another project's tree is not tracked there, so
    that project's commit is not used.
    """
    source = Path(__file__)
    try:
        for words in (
            ['ls-files', '--error-unmatch', source.name],
            ['rev-parse', 'HEAD'],
        ):
            done = subprocess.run(
                ['git', *words],
                capture_output=True,
                text=True,
                check=True,
                cwd=source.parent,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def say(text: list[str]) -> None:
    """Write lines to the current standard output."""
    logger = logging.getLogger('sam_detector.scale')
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    for line in text:
        logger.info(line)
    logger.removeHandler(handler)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the result, and write a JSON file if requested."""
    args = parse_args(argv)
    MMLogger.get_instance(
        'sam_scale', logger_name='sam_scale', log_level='ERROR'
    )
    try:
        found = measure(args)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    images, steps = args.project
    projected = {
        'images': images,
        'steps': steps,
        'seconds': project(found, images=images, steps=steps),
    }
    say(lines(found, projected))
    words = sys.argv[1:] if argv is None else argv
    result = {
        **found,
        'projected': projected,
        'command': shlex.join(['python', '-m', 'sam_detector.scale', *words]),
        'commit': commit(),
        'taskptq': __version__,
        'torch': torch.__version__,
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + '\n', 'utf-8')
        say([f'written to {args.out}'])
    return result


if __name__ == '__main__':
    main()
