"""Turn a training checkpoint into a small file that is safe to share.

    python tools/publish_checkpoint.py CONFIG IN.pth OUT.pth [--half]

What stays is the weights (the averaged ones where the run used an EMAHook)
and a few plain facts about the run, so ``torch.load(weights_only=True)``
reads the result. ``--half`` stores floating tensors as float16;
``load_state_dict`` brings them back to the model's own type.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from mmengine.logging import print_log
from torch import Tensor

from taskptq.core.atomic import write_atomically
from taskptq.registry import (
    SUPPORTED_VERSIONS,
    allow_history_buffers,
    installed_version,
)


def installed_versions() -> dict[str, str]:
    """Versions of torch and of the installed OpenMMLab packages."""
    found = {name: installed_version(name) for name in SUPPORTED_VERSIONS}
    found['torch'] = str(torch.__version__)
    return {name: value for name, value in found.items() if value}


def to_plain(value: Any) -> Any:
    """Copy nested containers as dicts, lists and Python scalars.

    Args:
        value: Dicts, lists, tuples, arrays or scalars, nested at will.
    """
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_plain(item) for item in value]
    if hasattr(value, 'tolist'):
        return to_plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def to_half(name: str, tensor: Tensor) -> Tensor:
    """Store a floating tensor as float16, any other one as it is.

    Args:
        name: Key of the tensor, for the message.
        tensor: Any shape and type.

    Raises:
        ValueError: If a value does not fit in float16.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not torch.isfinite(half).all():
        raise ValueError(
            f'{name} holds values up to {tensor.abs().max():.3g}, outside '
            f'float16: publish without --half'
        )
    return half


def read_metrics(log_file: str) -> dict[str, float]:
    """Scores of the last evaluation in mmengine's ``scalars.json``.

    Args:
        log_file: File of JSON lines, written by a training or a test run.

    Raises:
        ValueError: If no line holds a score.
    """
    ignored = {'data_time', 'time', 'step', 'epoch', 'iter', 'memory'}
    for line in reversed(
        Path(log_file).read_text(encoding='utf-8').splitlines()
    ):
        record = json.loads(line)
        if 'loss' in record:
            continue
        scores = {
            key: float(value)
            for key, value in record.items()
            if key not in ignored and isinstance(value, (int, float))
        }
        if scores:
            return scores
    raise ValueError(
        f'{log_file} holds no evaluation: run tools/test.py '
        f'first and name its vis_data/scalars.json'
    )


def publish(
    config: str,
    *,
    checkpoint: str,
    out: str,
    half: bool = False,
    metrics: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Write the published form of a training checkpoint.

    Args:
        config: Config file that the model was trained with.
        checkpoint: Training checkpoint written by mmengine.
        out: File to write.
        half: Store floating tensors as float16.
        metrics: ``scalars.json`` whose last scores go into the meta.
        trust: Read the checkpoint with the full unpickler, which runs code
            that the file names.

    Returns:
        The meta that was written.

    Raises:
        ValueError: If the checkpoint holds no weights, or see
            :func:`to_half` and :func:`read_metrics`.
    """
    # For the logs of a training; whatever mmengine loads withdraws it.
    allow_history_buffers()
    loaded = torch.load(checkpoint, map_location='cpu', weights_only=not trust)
    if not isinstance(loaded.get('state_dict'), dict):
        raise ValueError(
            f'{checkpoint} has no state_dict: name a training '
            f'checkpoint of mmengine'
        )
    # A copy of each tensor, since a view would drag its storage along.
    state = {
        name: (to_half(name, tensor) if half else tensor).clone()
        for name, tensor in loaded['state_dict'].items()
    }
    meta = loaded.get('meta', {})
    kept = to_plain(
        {
            'config': Path(config).name,
            'epoch': meta.get('epoch'),
            'iter': meta.get('iter'),
            'seed': meta.get('seed'),
            'dataset_meta': meta.get('dataset_meta', {}),
            'metrics': read_metrics(metrics) if metrics else {},
            'versions': installed_versions(),
        }
    )
    content = {'state_dict': state, 'meta': kept}
    write_atomically(out, lambda file: torch.save(content, file))
    return kept


def main(argv: list[str] | None = None) -> None:
    """Publish one checkpoint.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Publish a checkpoint')
    parser.add_argument('config', help='config the model was trained with')
    parser.add_argument('checkpoint', help='training checkpoint')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--half', action='store_true', help='store weights as float16'
    )
    parser.add_argument(
        '--metrics', help='scalars.json whose last scores are kept'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle everything in the file: for your own runs only',
    )
    args = parser.parse_args(argv)
    meta = publish(
        args.config,
        checkpoint=args.checkpoint,
        out=args.out,
        half=args.half,
        metrics=args.metrics,
        trust=args.trust_checkpoint,
    )
    size = Path(args.out).stat().st_size / 2**20
    print_log(
        f'{args.out}: {size:.2f} MiB, epoch {meta["epoch"]}, '
        f'metrics {meta["metrics"]}'
    )


if __name__ == '__main__':
    main()
