"""What lies beside a quantized file: reports, metrics, sensitivities.

These files are JSON that anyone may have written: what has another form is
left out, and all text is escaped where it is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)
from taskptq.export.quantized_file import QuantizedFile
from taskptq.prepare.report import SwapReport

__all__ = [
    'BENCHMARK_FILE',
    'METRICS_FILE',
    'QUANTIZATION_FILE',
    'benchmark_beside',
    'float_metrics_beside',
    'kept_metrics',
    'metrics_beside',
    'quantization_beside',
    'record_metrics',
    'sensitivity_beside',
    'warnings_of',
]

QUANTIZATION_FILE = 'quantization_report.json'
METRICS_FILE = 'report.json'
SENSITIVITY_FILE = 'sensitivity.json'
BENCHMARK_FILE = 'benchmark.json'
# A report of a large model has some MB.
MAX_BYTES = 64 << 20
FLOAT = 'float'
# Metrics by digest, which outlive a page that is written again.
MEASURED = 'measured'


def read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object of a file; empty if there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def quantization_beside(file: QuantizedFile) -> Mapping[str, Any]:
    """Return the report of a file's quantization; empty without its own."""
    report = read_json(file.path.parent / QUANTIZATION_FILE)
    return report if report.get('digest') == file.payload['digest'] else {}


def metrics_beside(
    file: QuantizedFile, *, key: str = 'metrics'
) -> dict[str, Any]:
    """Return what was measured of a file; empty if nothing was.

    Args:
        file: The file.
        key: ``metrics``, or ``classes`` for those of single classes.
    """
    content = read_json(file.path.parent / METRICS_FILE)
    for entry in [*_entries(content, MEASURED), *_entries(content, 'files')]:
        if entry.get('digest') == file.payload['digest']:
            return _numbers(entry.get(key))
    return {}


def float_metrics_beside(
    folders: Sequence[Path], *, digest: str = '', key: str = 'metrics'
) -> dict[str, Any]:
    """Return the float model's metrics, measured and recorded in a folder.

    Args:
        folders: Where to look for ``report.json``.
        digest: SHA-256 of the float checkpoint; '' takes any.
        key: See :func:`metrics_beside`.
    """
    for folder in folders:
        found = read_json(folder / METRICS_FILE).get(FLOAT)
        if not isinstance(found, Mapping):
            continue
        if not digest or found.get('digest') in (None, digest):
            metrics = _numbers(found.get(key))
            if metrics:
                return metrics
    return {}


def record_metrics(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    digest: str,
    file: str,
    classes: Mapping[str, Any] | None = None,
    is_float: bool = False,
) -> Path:
    """Add the metrics of a model to the ``report.json`` of a folder.

    Args:
        folder: Folder of the file.
        metrics: What the evaluator returned; what is not finite becomes
            None.
        digest: Digest of a quantized file, SHA-256 of a float checkpoint.
        file: Name of the file.
        classes: Class -> its metric, where the evaluator knows it.
        is_float: Whether the model is the float model.

    Returns:
        The written file.
    """
    path = folder / METRICS_FILE
    content = dict(read_json(path))
    found = {
        'digest': digest,
        'file': file,
        'metrics': _numbers(metrics),
        'classes': _numbers(classes),
    }
    if is_float:
        content[FLOAT] = {**_dict(content.get(FLOAT)), **found}
    else:
        others = [
            entry
            for entry in _entries(content, MEASURED)
            if entry.get('digest') != digest
        ]
        content[MEASURED] = [*others, found]
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return path


def kept_metrics(path: Path) -> dict[str, Any]:
    """Return what a new ``report.json`` takes over from the one before.

    Args:
        path: The file that is about to be written.
    """
    content = read_json(path)
    return {key: content[key] for key in (FLOAT, MEASURED) if content.get(key)}


def sensitivity_beside(file: QuantizedFile) -> SensitivityReport | None:
    """Return the sensitivities of a file's layers, None without.

    They count if most of their layers are layers of the file.
    """
    content = read_json(file.path.parent / SENSITIVITY_FILE)
    try:
        report = SensitivityReport.from_dict(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    totals = [report.total, *(r.others for r in report.roles)]
    totals += [role.alone for role in report.roles]
    if not all(map(_is_sane, report.points)) or not _are_numbers(totals):
        return None
    known = file.rows()
    shared = sum(point.layer in known for point in report.points)
    return report if shared > len(report.points) / 2 else None


def _is_sane(point: PointSensitivity) -> bool:
    """Whether a point's numbers are numbers; its file may say anything."""
    numbers = [
        point.sqnr_db,
        point.peak_to_std,
        point.effective_bits,
        *point.losses.values(),
    ]
    return _are_numbers(numbers) and str(point.num_bits) in point.losses


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(
        isinstance(value, (int, float)) and math.isfinite(value)
        for value in values
    )


def benchmark_beside(file: QuantizedFile) -> dict[str, Any] | None:
    """Return the speed of the file's export, measured; None without.

    ``taskptq benchmark MODEL.onnx --json`` writes it; it counts if the
    first file that was measured was made from this one.

    Returns:
        ``runtime``, ``threads``, ``batch``, and ``timings``: each with
        ``file``, ``cpu_ms`` and ``wall_ms``, and with ratios to the first.
    """
    content = read_json(file.path.parent / BENCHMARK_FILE)
    timings = _entries(content, 'timings')
    if not timings or timings[0].get('digest') != file.payload['digest']:
        return None
    keys = ('cpu_ms', 'wall_ms', 'cpu_ratio', 'wall_ratio')
    rows = [
        {'file': Path(str(one.get('file'))).name}
        | {key: _numbers(one).get(key) for key in keys}
        for one in timings
    ]
    whole = _numbers(content)
    return {
        'runtime': str(content.get('runtime') or ''),
        'threads': int(whole.get('threads') or 1),
        'batch': int(whole.get('batch') or 1),
        'timings': rows,
    }


def warnings_of(swap: SwapReport, side: Mapping[str, Any]) -> list[str]:
    """Return the warnings, one sentence each.

    Args:
        swap: What was swapped and what ran.
        side: Report of the quantization, may be empty.
    """
    found = [
        f'{name} stays float: {why}'
        for name, why in {
            **swap.decisions.left_float,
            **(swap.products.left_float if swap.products else {}),
        }.items()
    ]
    found += [
        f'{name} was not folded into a layer: {why}'
        for name, why in swap.decisions.kept_norms.items()
    ]
    if swap.products is not None:
        found += [
            f'{name} was called by no traced batch'
            for name in swap.products.unreached
        ]
    for source in (side.get('calibration'), side):
        if isinstance(source, Mapping):
            found += _sentences(source.get('warnings'))
    return list(dict.fromkeys(found))


def _sentences(warnings: Any) -> list[str]:
    """Return warnings as sentences; each is a text, or a dict of texts."""
    if not isinstance(warnings, Sequence) or isinstance(warnings, str):
        return []
    return [
        '; '.join(map(str, item.values()))
        if isinstance(item, Mapping)
        else str(item)
        for item in warnings
    ]


def _entries(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(metrics: Any) -> dict[str, Any]:
    """Keep names with a number; what is not finite becomes None."""
    found: dict[str, Any] = {}
    for name, value in _dict(metrics).items():
        if value is None or isinstance(value, (int, float)):
            number = math.nan if value is None else float(value)
            found[str(name)] = number if math.isfinite(number) else None
    return found
