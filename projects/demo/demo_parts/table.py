"""The demo's table."""

from __future__ import annotations

from collections.abc import Sequence

from demo_parts.rows import Measured

HEADER = ('model', 'AP', 'AP50', 'of float', 'file MB', 'seconds')


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
