"""The demo's table, as text and as an HTML page."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from demo_parts.generator import SPLITS
from demo_parts.rows import LANES, Measured, threads_per_row

HEADER = ('model', 'AP', 'AP50', 'of float', 'file MB', 'seconds')
NOTE = (
    f'AP and AP50 on the {SPLITS["test"]} test images. File: the quantized '
    'checkpoint, from which the model is rebuilt; for float, its weights as '
    'float32. Seconds: the whole command, quantizing included, with '
    f'{LANES} commands at a time.'
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ccc;
         text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
"""


def cells(rows: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return the table's body; the first row is the float model."""
    reference = rows[0].ap
    return [
        (
            row.row.title,
            f'{row.ap:.3f}',
            f'{row.ap50:.3f}',
            f'{100 * row.ap / reference:.1f} %' if reference else '-',
            f'{row.file_bytes / 1e6:.2f}',
            f'{row.seconds:.0f}',
        )
        for row in rows
    ]


def text_table(rows: Sequence[Measured]) -> str:
    """Return the table in columns."""
    lines = [HEADER, *cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = [
        '  '.join(
            [
                line[0].ljust(widths[0]),
                *(
                    c.rjust(w)
                    for c, w in zip(line[1:], widths[1:], strict=True)
                ),
            ]
        )
        for line in lines
    ]
    return '\n'.join([texts[0], '-' * len(texts[0]), *texts[1:]])


def write_html(
    rows: Sequence[Measured],
    *,
    picture: Path,
    out: Path,
    seconds: float,
    cpu_seconds: float,
) -> None:
    """Write the page.

    Args:
        rows: What was measured.
        picture: Picture, in the folder of ``out``.
        out: HTML file.
        seconds: Wall time of the whole demo.
        cpu_seconds: CPU time of the whole demo, over all cores.
    """
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in HEADER)
    body = '\n'.join(
        '<tr>' + ''.join(f'<td>{html.escape(c)}</td>' for c in line) + '</tr>'
        for line in cells(rows)
    )
    commands = html.escape('\n'.join(row.command for row in rows))
    machine = (
        f'{seconds:.0f} s in all, {cpu_seconds:.0f} s of CPU time; torch '
        f'{torch.__version__}, {threads_per_row()} threads for each command, '
        f'Python {platform.python_version()}'
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>taskptq demo</title>
<style>{STYLE}</style></head><body>
<h1>A small detector, quantized</h1>
<p>RetinaNet (0.25 million weights) finds bolts, nuts and washers in pictures
that the demo draws itself. Each line is one run of
<code>tools/test.py</code> on the same float checkpoint.</p>
<table><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table>
<p>{html.escape(NOTE)}</p>
<p><img src="{html.escape(picture.name)}"
alt="boxes of the float and the quantized models"></p>
<h2>Commands</h2>
<pre>{commands}</pre>
<p>{html.escape(machine)}.</p>
</body></html>
"""
    out.write_text(page, encoding='utf-8')
