"""Draw a data set, quantize a shipped detector, and show what came of it.

    python projects/demo/run_demo.py [--out DIR]

Everything is measured in the run: the float model and three quantized ones
are tested by ``tools/test.py``, with nothing but a config each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from pathlib import Path

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from demo_parts.generator import generate
from demo_parts.report import text_table, write_html
from demo_parts.rows import (
    CHECKPOINT,
    FLOAT_CONFIG,
    ROWS,
    Measured,
    run_row,
)

ROOT = Path(__file__).resolve().parents[2]
# The configs name this folder.
DATA = Path('work_dirs/demo/data')


def say(text: str) -> None:
    """Tell the user something, at once."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def measure_rows(out: Path) -> list[Measured]:
    """Run every row, one after another."""
    measured = []
    for number, row in enumerate(ROWS, start=1):
        say(f'[{number}/{len(ROWS)}] {row.title} ...')
        result = run_row(row, root=ROOT, work_dir=out / row.key)
        say(f'      AP {result.ap:.3f} after {result.seconds:.0f} s')
        measured.append(result)
    return measured


def compare(out: Path, *, picture: Path) -> None:
    """Draw float against plain and reconstructed boxes."""
    # Loaded late: mmdet takes seconds, and the rows need it only in
    # processes of their own.
    with contextlib.redirect_stdout(io.StringIO()):
        from demo_parts.picture import draw_comparison

    quantized = {
        row.title: (row.config, out / row.key / 'quantized.pth')
        for row in ROWS
        if row.key in ('plain', 'learned')
    }
    # pycocotools talks while it reads annotations.
    with contextlib.redirect_stdout(io.StringIO()):
        draw_comparison(
            root=ROOT,
            float_config=FLOAT_CONFIG,
            checkpoint=CHECKPOINT,
            quantized=quantized,
            out=picture,
        )


def main(argv: list[str] | None = None) -> None:
    """Run the demo.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a run fails; with the end of its log.
    """
    parser = argparse.ArgumentParser(description='Quantize a small detector')
    parser.add_argument(
        '--out',
        default='work_dirs/demo',
        help='folder for what it writes, '
        "relative to the repository's top level",
    )
    parser.add_argument(
        '--data-only', action='store_true', help='draw the data set and stop'
    )
    args = parser.parse_args(argv)
    # Configs and commands name paths from the repository's top level.
    os.chdir(ROOT)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    say('Drawing the data set: bolts, nuts and washers on a workbench ...')
    if not generate(DATA):
        say(f'      it is there already: {DATA}')
    if args.data_only:
        return
    try:
        rows = measure_rows(out)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    picture, page = out / 'boxes.png', out / 'report.html'
    compare(out, picture=picture)
    seconds = time.perf_counter() - start
    write_html(rows, picture=picture, out=page, seconds=seconds)
    say(f'\n{text_table(rows)}\n')
    say(f'picture: {ROOT / picture}')
    say(f'report:  {ROOT / page}')
    say(f'{seconds:.0f} s in all')


if __name__ == '__main__':
    main()
