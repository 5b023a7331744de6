"""Peak memory of a reconstruction whose activations don't fit its budget."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import run_setup
from taskptq.engine.pipeline import run_batch
from taskptq.reconstruction import reconstruct

TARGET = 1.02
# Peaks vary by some percent with the allocator, so medians are compared.
REPEATS = 3
MIB = 2**20


class RandomImages(Sequence[Any]):
    """Batches of noise, generated on access; each batch is reproducible.

    Args:
        num_images: Total number of images.
        batch_size: Images per batch.
        size: Height and width in pixels.
    """

    def __init__(
        self, num_images: int, *, batch_size: int, size: tuple[int, int]
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.size = size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.num_images // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        """Make one batch."""
        from mmdet.structures import DetDataSample

        if not 0 <= index < len(self):
            raise IndexError(f'batch {index} of {len(self)}')
        count = min(self.batch_size, self.num_images - index * self.batch_size)
        generator = torch.Generator().manual_seed(index)
        meta = {
            'ori_shape': self.size,
            'img_shape': self.size,
            'scale_factor': (1.0, 1.0),
        }
        return {
            'inputs': [
                torch.randint(
                    256,
                    (3, *self.size),
                    dtype=torch.uint8,
                    generator=generator,
                )
                for _ in range(count)
            ],
            'data_samples': [
                DetDataSample(metainfo=dict(meta)) for _ in range(count)
            ],
        }


def images(
    config: Any, *, num_images: int, batch_size: int
) -> tuple[Sequence[Any], str]:
    """Return training images, or noise if the data set is missing."""
    dataset = config.train_dataloader.dataset
    root = Path(dataset.get('data_root') or '.')
    if (root / dataset.get('ann_file', '')).is_file():
        return run_setup.calibration_batches(
            config, num_images=num_images, batch_size=batch_size
        ), str(dataset.data_root)
    return RandomImages(
        num_images, batch_size=batch_size, size=(240, 320)
    ), 'noise'


def peak_bytes() -> int:
    """Return this process' peak resident memory.

    On Linux a process inherits ``ru_maxrss`` from its parent, so the kernel's
    own high-water mark is read if available.
    """
    status = Path('/proc/self/status')
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def work(
    config_path: str,
    checkpoint: str,
    *,
    recipe: str,
    num_images: int,
    budget_mib: int,
    steps: int,
    batch_size: int,
) -> dict[str, Any]:
    """Reconstruct once in this process and return its peak memory."""
    config = run_setup.read_config(config_path)
    batches, source = images(
        config, num_images=num_images, batch_size=batch_size
    )
    model = run_setup.prepared(
        run_setup.load_float(config, checkpoint), batches, recipe=recipe
    )
    before = peak_bytes()
    report = reconstruct(
        model,
        batches,
        run_setup.reconstruction(
            recipe, steps=steps, cache_bytes=budget_mib * MIB
        ),
        forward=run_batch,
        progress=False,
    )
    return {
        'num_images': num_images,
        'images': source,
        'peak_bytes': peak_bytes(),
        'peak_bytes_before': before,
        'spilled_bytes': report.spilled_bytes,
        'seconds': report.seconds,
    }


def measure(
    config_path: str,
    checkpoint: str,
    *,
    recipe: str,
    num_images: int,
    budget_mib: int,
    steps: int,
    batch_size: int,
    script: str,
) -> dict[str, Any]:
    """Reconstruct with N and with 2N images, in separate processes.

    Args:
        config_path: Config of the float model.
        checkpoint: Float checkpoint.
        recipe: Name of the recipe, or a file that sets its parts.
        num_images: N.
        budget_mib: Budget of the activation cache.
        steps: Steps of each unit.
        batch_size: Images per calibration batch.
        script: The tool itself.

    Raises:
        RuntimeError: If a process fails, or nothing had to be spilled.
    """
    counts = (num_images, 2 * num_images)
    runs = [
        _run_worker(
            [
                script,
                'memory-worker',
                config_path,
                checkpoint,
                '--recipe',
                recipe,
                '--num-images',
                str(count),
                '--budget-mib',
                str(budget_mib),
                '--steps',
                str(steps),
                '--batch-size',
                str(batch_size),
            ]
        )
        for _ in range(REPEATS)
        for count in counts
    ]
    if not all(run['spilled_bytes'] for run in runs):
        raise RuntimeError(
            f'{num_images} images fit into {budget_mib} MiB: give a smaller '
            '--budget-mib or more images'
        )
    once, twice = (
        statistics.median(run['peak_bytes'] for run in runs[place::2])
        for place in range(2)
    )
    ratio = twice / once
    return {
        'config': config_path,
        'checkpoint': checkpoint,
        'recipe': recipe,
        'budget_mib': budget_mib,
        'runs': runs,
        'ratio': ratio,
        'target': TARGET,
        'reached': ratio <= TARGET,
    }


def _run_worker(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f'{" ".join(arguments)} failed:\n{done.stderr[-2000:]}'
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    rows = [
        f'  {run["num_images"]:4d} images ({run["images"]}): peak '
        f'{run["peak_bytes"] / MIB:.0f} MiB, spilled '
        f'{run["spilled_bytes"] / MIB:.0f} MiB'
        for run in result['runs']
    ]
    return [
        f'reconstruction with {result["budget_mib"]} MiB for activations:',
        *rows,
        f'  ratio of the medians {result["ratio"]:.3f} (target at most '
        f'{TARGET})',
    ]
