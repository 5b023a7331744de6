"""Draw masks of quantized models and distributions of keys; sum attentions.

    python projects/sam_detector/make_pictures.py masks \
        --rows w4a4_mse w4a4_ptq4sam-l --out masks.png [--bimodal]
    python projects/sam_detector/make_pictures.py keys \
        --out keys.png --json keys.json
    python projects/sam_detector/make_pictures.py row-sums \
        --rows w4a4_mse w4a4_agq-s --json sums.json [--bimodal]

Models, data and recipes are those of the tables in ``configs``; masks are of
the split that a table evaluates, prompted by ground-truth boxes, keys and the
sums of attentions' rows of training images prompted by the detector.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from pathlib import Path

from taskptq.apis import default_device

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path('projects/sam_detector/configs')
WORK_DIR = Path('work_dirs/sam_pictures')


def say(text: str) -> None:
    """Print a line immediately."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw pictures of SAM')
    commands = parser.add_subparsers(dest='what', required=True)
    masks = commands.add_parser('masks', help='masks, float and quantized')
    keys = commands.add_parser('keys', help='histograms of keys')
    sums = commands.add_parser(
        'row-sums', help='sums of the rows of quantized attentions'
    )
    for command in (masks, sums):
        command.add_argument(
            '--rows',
            nargs='+',
            required=True,
            help='recipes of this project, e.g. w4a4_mse',
        )
        command.add_argument(
            '--bimodal', action='store_true', help='the model of bimodal keys'
        )
    masks.add_argument(
        '--reuse',
        action='store_true',
        help='take files of equal recipes from an earlier run',
    )
    keys.add_argument('--json', type=Path, help='file for the figures')
    sums.add_argument(
        '--json', type=Path, required=True, help='file for the figures'
    )
    for command in (masks, keys):
        command.add_argument(
            '--out', type=Path, required=True, help='PNG file'
        )
    for command in (masks, keys, sums):
        command.add_argument(
            '--images', type=int, default=4, help='number of images'
        )
        command.add_argument('--seed', type=int, default=0)
        command.add_argument('--device', default=default_device())
    return parser.parse_args(argv)


def table_name(args: argparse.Namespace) -> str:
    """Return the name of the requested table."""
    return 'sam-tiny-bimodal_nuclei' if args.bimodal else 'sam-tiny_nuclei'


def masks(args: argparse.Namespace) -> None:
    """Quantize, and draw masks."""
    # Loaded late: mmdet takes seconds and warns.
    from sam_detector.experiment import read_experiment
    from sam_detector.mask_comparison import compare_masks

    name = table_name(args)
    ious = compare_masks(
        read_experiment(CONFIGS / f'{name}.table.yml'),
        args.rows,
        num_images=args.images,
        out=args.out,
        work_dir=WORK_DIR / name,
        seed=args.seed,
        device=args.device,
        reuse=args.reuse,
    )
    for column, values in ious.items():
        say(
            f'{column:32s} mean IoU of the images: '
            + ', '.join(f'{value:.3f}' for value in values)
        )


def keys(args: argparse.Namespace, *, command: str) -> None:
    """Describe and draw keys."""
    from sam_detector.experiment import read_experiment
    from sam_detector.key_comparison import (
        draw_keys,
        measure_keys,
        write_keys,
    )

    bimodal = read_experiment(CONFIGS / 'sam-tiny-bimodal_nuclei.table.yml')
    # pycocotools prints while it reads annotations.
    with contextlib.redirect_stdout(io.StringIO()):
        found = measure_keys(
            bimodal, num_images=args.images, seed=args.seed, device=args.device
        )
    draw_keys(found['stages'], args.out)
    if args.json is not None:
        write_keys(
            found,
            args.json,
            experiment=bimodal,
            command=command,
            num_images=args.images,
            seed=args.seed,
        )
    for title, stage in found['stages'].items():
        counts = [len(one['peaks']['positions']) for one in stage.values()]
        say(f'{title:20s} peaks in {len(counts)} attentions: {counts}')


def row_sums(args: argparse.Namespace, *, command: str) -> None:
    """Quantize, and sum the rows of attentions."""
    from sam_detector.experiment import read_experiment
    from sam_detector.row_sums import measure_row_sums, write_row_sums

    name = table_name(args)
    experiment = read_experiment(CONFIGS / f'{name}.table.yml')
    with contextlib.redirect_stdout(io.StringIO()):
        found = measure_row_sums(
            experiment,
            args.rows,
            num_images=args.images,
            seed=args.seed,
            device=args.device,
            work_dir=WORK_DIR / name,
        )
    write_row_sums(
        found,
        args.json,
        experiment=experiment,
        command=command,
        num_images=args.images,
        seed=args.seed,
    )
    for row, attentions in found.items():
        say(f'{row}: mean of row sum - 1')
        for attention, errors in attentions.items():
            say(f'  {attention:60s} {errors["bias"]:+.3f}')


def main(argv: list[str] | None = None) -> None:
    """Draw.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a row or a number is invalid.
    """
    args = parse_args(argv)
    # Configs name paths from the repository's top level.
    os.chdir(ROOT)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(
        ['python', 'projects/sam_detector/make_pictures.py', *words]
    )
    try:
        if args.what == 'masks':
            masks(args)
        elif args.what == 'keys':
            keys(args, command=command)
        else:
            row_sums(args, command=command)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    say(f'written: {args.json if args.what == "row-sums" else args.out}')


if __name__ == '__main__':
    main()
