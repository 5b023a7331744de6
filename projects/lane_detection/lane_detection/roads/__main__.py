"""Command line of the road generator."""

from __future__ import annotations

import argparse
import sys
import time

from .generate import RoadSet, generate


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    usual = RoadSet()
    options = argparse.ArgumentParser(
        prog='python -m lane_detection.roads',
        description='Draw road images with lanes from a seed',
    )
    options.add_argument(
        '--out', default='work_dirs/roads', help='folder of the set'
    )
    options.add_argument('--num-train', type=int, default=usual.num_train)
    options.add_argument('--num-val', type=int, default=usual.num_val)
    options.add_argument(
        '--layout', choices=('culane', 'tusimple'), default=usual.layout
    )
    options.add_argument(
        '--scale',
        type=float,
        default=usual.scale,
        help='size of the '
        "images relative to the annotations' frame (1640x590 or 1280x720)",
    )
    options.add_argument('--seed', type=int, default=usual.seed)
    options.add_argument('--workers', type=int, default=1, help='processes')
    return options


def main(argv: list[str] | None = None) -> None:
    """Draw a set.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if the set cannot be created.
    """
    args = parser().parse_args(argv)
    start = time.perf_counter()
    try:
        roads = RoadSet(
            num_train=args.num_train,
            num_val=args.num_val,
            layout=args.layout,
            scale=args.scale,
            seed=args.seed,
        )
        made = generate(args.out, roads, workers=args.workers)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f'{args.out}: {args.num_train} + {args.num_val} images in '
        f'{seconds:.0f} s\n'
        if made
        else f'{args.out} already exists\n'
    )


if __name__ == '__main__':
    main()
