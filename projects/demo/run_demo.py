"""Draw a data set, quantize a shipped detector, and show what came of it.

    python projects/demo/run_demo.py [--out DIR]

Everything is measured in the run: ``tools/test.py`` tests the float model and
three quantized ones, with nothing but a config each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from demo_parts.generator import generate
from demo_parts.rows import (
    CHECKPOINT,
    FLOAT_CONFIG,
    LANES,
    ROWS,
    Measured,
    command_of,
    run_row,
)
from demo_parts.table import text_table

ROOT = Path(__file__).resolve().parents[2]
# The configs name this folder.
DATA = Path('work_dirs/demo/data')
# What the demo itself prints, also while it hides what libraries print.
CONSOLE = sys.stdout


def say(text: str) -> None:
    """Print a line at once."""
    CONSOLE.write(f'{text}\n')
    CONSOLE.flush()


def measure_rows(out: Path) -> list[Measured]:
    """Run the rows, a few at a time; the longest one starts first.

    Args:
        out: Folder for the rows' own folders.

    Raises:
        RuntimeError: If a row fails; rows that wait are dropped.
    """
    pool = ThreadPoolExecutor(max_workers=LANES)
    jobs = {
        pool.submit(run_row, row, root=ROOT, work_dir=out / row.key): row
        for row in reversed(ROWS)
    }
    # mmdet takes seconds to load: the picture's share of it fills the gap
    # until the longest row ends.
    pool.submit(load_picture)
    try:
        for job in as_completed(jobs):
            report_row(job)
    finally:
        pool.shutdown(cancel_futures=True)
    results = {row: job.result() for job, row in jobs.items()}
    return [results[row] for row in ROWS]


def report_row(job: Future[Measured]) -> None:
    """Print what a finished row measured, or raise its error."""
    done = job.result()
    say(f'      {done.row.title}: AP {done.ap:.3f} ({done.seconds:.0f} s)')


def load_picture() -> None:
    """Import what draws the picture; mmdet talks meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module('demo_parts.picture')


def compare(out: Path, *, picture: Path) -> None:
    """Draw float against plain and reconstructed boxes."""
    # Loaded late: mmdet takes seconds, and rows need it only in processes of
    # their own.
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


def write_page(out: Path, *, page: Path) -> None:
    """Write the page on the quantized models.

    Args:
        out: Folder of the rows' own folders, which hold what they measured.
        page: HTML file.
    """
    from taskptq.engine.page import PageSettings, make_page

    files = [out / row.key / 'quantized.pth' for row in ROWS]
    # pycocotools talks while it reads annotations.
    with contextlib.redirect_stdout(io.StringIO()):
        make_page(
            [file for file in files if file.is_file()],
            out=page,
            config=FLOAT_CONFIG,
            float_checkpoint=CHECKPOINT,
            float_folder=out / 'float',
            settings=PageSettings(num_images=8, layer_images=2),
            commands=[command_of(row, work_dir=out / row.key) for row in ROWS],
        )


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for."""
    times = os.times()
    return sum(times[:4])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
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
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the demo.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a run fails; with the end of its log.
    """
    args = parse_args(argv)
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
    say(f'Testing {len(ROWS)} models, {LANES} at a time ...')
    try:
        rows = measure_rows(out)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    say('Drawing the picture and the page ...')
    picture, page = out / 'boxes.png', out / 'report.html'
    compare(out, picture=picture)
    write_page(out, page=page)
    seconds = time.perf_counter() - start
    say(f'\n{text_table(rows)}\n')
    say(f'picture: {ROOT / picture}')
    say(f'page:    {ROOT / page}')
    say(f'{seconds:.0f} s in all, {cpu_seconds():.0f} s of CPU time')


if __name__ == '__main__':
    main()
