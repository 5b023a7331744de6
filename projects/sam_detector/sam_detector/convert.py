"""Merge an official SAM file and a detector's checkpoint into one.

    python -m sam_detector.convert --sam sam_vit_b.pth \
        --detector faster_rcnn.pth --out merged.pth

The result is a checkpoint that a SAMDetector's config evaluates. The files
are read without running code from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from taskptq.engine.builder import to_plain
from taskptq.engine.checkpoint_file import local_file, read_checkpoint

from .loading import detector_weights
from .sam import SAM_SIZES, read_sam_file

__all__ = ['main', 'merge', 'sam_size']


def sam_size(state: dict[str, Tensor]) -> str:
    """Return the size of SAM in a state dict.

    Args:
        state: SAM's weights under the names of an official file.

    Returns:
        A key of ``SAM_SIZES``.

    Raises:
        ValueError: If it matches none of them.
    """
    blocks = {
        key.split('.')[2]
        for key in state
        if key.startswith('image_encoder.blocks.')
    }
    table = state.get('image_encoder.pos_embed')
    shape = None if table is None else tuple(table.shape)
    for name, size in SAM_SIZES.items():
        cells = size.image_size // size.patch_size
        expected = (1, cells, cells, size.embed_dim)
        if shape == expected and len(blocks) == size.depth:
            return name
    raise ValueError(
        f'the image encoder with {len(blocks)} blocks and a positional table '
        f'of shape {shape} is not one of {", ".join(SAM_SIZES)}: give the '
        'file of one of these'
    )


def merge(
    sam: str | Path,
    detector: str | Path | None,
    *,
    out: str | Path,
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Write one checkpoint with the weights of both.

    Args:
        sam: Official SAM file, or mm checkpoint of a SAMDetector.
        detector: Checkpoint of mmdet, path or URL; None for SAM alone.
        out: File to write.
        trust_checkpoint: Unpickle a detector's file that holds more than
            plain data, which can run code from it.

    Returns:
        The new file's ``meta``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file holds something else.
    """
    weights = read_sam_file(local_file(sam))
    meta: dict[str, Any] = {
        'sam_detector': {'sam': Path(sam).name, 'size': sam_size(weights)}
    }
    state = {f'sam.{key}': value for key, value in weights.items()}
    if detector is not None:
        found = detector_weights(detector, trust_checkpoint=trust_checkpoint)
        state |= {f'detector.{key}': value for key, value in found.items()}
        meta['sam_detector']['detector'] = Path(detector).name
        meta |= dataset_meta(detector, trust_checkpoint=trust_checkpoint)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': state, 'meta': meta}, out)
    return meta


def dataset_meta(
    detector: str | Path, *, trust_checkpoint: bool
) -> dict[str, Any]:
    """Return a detector's classes from its file."""
    content = read_checkpoint(
        local_file(detector), trust_checkpoint=trust_checkpoint
    )
    found = (content.get('meta') or {}).get('dataset_meta')
    return {} if found is None else {'dataset_meta': to_plain(found)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; None reads ``sys.argv``."""
    parser = argparse.ArgumentParser(
        prog='python -m sam_detector.convert',
        description='Merge SAM and a detector into one checkpoint',
    )
    parser.add_argument('--sam', required=True, help='official SAM file')
    parser.add_argument('--detector', help='checkpoint of an mmdet detector')
    parser.add_argument('--out', required=True, help='file to write')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help="unpickle a detector's file that holds more than plain data, "
        'which can run code from it: only for sources you trust',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    try:
        meta = merge(
            args.sam,
            args.detector,
            out=args.out,
            trust_checkpoint=args.trust_checkpoint,
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print_log(f'Wrote {args.out}: SAM {meta["sam_detector"]["size"]}')


if __name__ == '__main__':
    main()
