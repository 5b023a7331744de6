"""A sensitivity report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.prepare.products_report import percent

__all__ = ['report_lines']

MOST_POINTS = 15


def report_lines(
    report: SensitivityReport, *, most: int = MOST_POINTS
) -> Iterator[str]:
    """Yield the worst tensors, the roles and the sentences.

    Args:
        report: What to show.
        most: Tensors to list at most.
    """
    estimated = report.estimated or 1.0
    total_macs = sum(p.macs for p in report.points if p.point == 'weight')
    bits = sorted({bits for p in report.points for bits in p.losses}, key=int)
    yield (
        f'Output loss of one tensor at a time ({report.estimator}, '
        f'{report.num_images} images), the worst first:'
    )
    yield from _aligned(
        [
            (
                'share',
                *(f'{b} bit' for b in bits),
                'ENOB',
                'peak',
                'MACs',
                'role',
                'tensor',
            ),
            *(
                (
                    f'{100 * point.loss / estimated:.1f} %',
                    *(_number(point.losses.get(b)) for b in bits),
                    f'{point.effective_bits:.1f}',
                    f'{point.peak_to_std:.0f} std',
                    percent(min(point.macs, total_macs), total_macs or 1),
                    point.role,
                    point.name,
                )
                for point in report.sorted()[:most]
            ),
        ]
    )
    if report.roles:
        yield ''
        yield from _role_lines(report)
    yield ''
    yield from report.sentences()


def _role_lines(report: SensitivityReport) -> Iterator[str]:
    yield f'Output loss by role (everything quantized: {report.total:.3g}):'
    header = ['tensors', 'alone', 'all others', 'comes back', 'role']
    metric = bool(report.metric)
    rows = [tuple([*header, report.metric] if metric else header)]
    for role in report.roles:
        back = 1 - role.others / report.total if report.total > 0 else 0.0
        row = [
            str(role.num_points),
            _number(role.alone),
            _number(role.others),
            f'{100 * back:.0f} %',
            role.role,
        ]
        rows.append(tuple([*row, _number(role.metric)] if metric else row))
    yield from _aligned(rows)
    if metric:
        yield (
            f'{report.metric}: float {_number(report.metric_float)}, '
            f'quantized {_number(report.metric_quant)}; with a role float as '
            'in the last column'
        )


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3g}'


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows in columns, the last two to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.rjust(width) if i < len(row) - 2 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield '  ' + '  '.join(cells).rstrip()
