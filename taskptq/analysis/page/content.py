"""Everything on the page as plain types: the content of ``report.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskptq.analysis.page.metrics import (
    class_rows,
    classes_in,
    kept,
    main_metric,
    metric_rows,
)
from taskptq.analysis.page.noise import by_group
from taskptq.analysis.page.robustness import robustness_beside
from taskptq.analysis.page.side_files import (
    benchmark_beside,
    metrics_beside,
    quantization_beside,
    sensitivity_beside,
    warnings_of,
)
from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.export.quantized_file import QuantizedFile
from taskptq.version import __version__

__all__ = ['file_entry', 'page_content', 'titles_of']

POINTS = ('weight', 'activation', 'attention', 'softmax')


def titles_of(files: Sequence[QuantizedFile]) -> list[str]:
    """Return a short title for each file; all differ."""
    recipes = [_label(file) for file in files]
    names = [
        name if recipes.count(name) == 1 else f'{name} ({file.path.stem})'
        for name, file in zip(recipes, files, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f'{index + 1}: {name}'
        for index, name in enumerate(names)
    ]


def _label(file: QuantizedFile) -> str:
    recipe = file.payload['meta'].get('recipe')
    return str(recipe)[:60] if recipe else file.path.stem


def file_entry(
    file: QuantizedFile,
    *,
    title: str,
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a file says of itself, and what was written beside it.

    Args:
        file: The file.
        title: What the page calls it.
        metrics: Measured now; None reads those beside the file.

    Raises:
        QuantizedCheckpointError: If its structure is impossible.
    """
    swap = file.swap_report()
    # A page is shared: folders of a machine are nobody's business.
    facts = {**file.facts(), 'file': file.path.name}
    side = quantization_beside(file)
    sensitivity = sensitivity_beside(file)
    found = metrics or metrics_beside(file)
    total = swap.products.total if swap.products else 0
    layers = [
        {**asdict(row), 'share': (row.macs or 0) / total if total else None}
        for row in swap.rows
    ]
    return {
        'title': title,
        'digest': file.payload['digest'],
        'facts': facts,
        'layers': layers,
        'summary': swap.summary(),
        'bits': bits_of(layers),
        'stays_float': [x for x in layers if x['status'] != 'quantized'],
        'folded': len(swap.folded),
        'warnings': warnings_of(swap, side),
        'metrics': dict(found),
        'classes': classes_in(found) | metrics_beside(file, key='classes'),
        'benchmark': benchmark_beside(file),
        'robustness': robustness_beside(file),
        'recipe': file.payload['recipe'],
        'rewrites': _types(file.payload['recipe'].get('rewrites')),
        'calibration': _amount(facts['calibration']),
        'quantization': _seconds(side),
        'reconstruction': _units(side),
        'mixed_precision': _without_times(side.get('mixed_precision')),
        'export': side.get('export'),
        'sensitivity': _sensitivity(sensitivity),
    }


def _sensitivity(report: SensitivityReport | None) -> dict[str, Any] | None:
    """Return what the page shows of sensitivities, the worst first.

    Returns:
        ``sentences``; ``points`` with the ``loss`` of each; ``roles`` with
        the share of the loss that comes ``back`` if the role is float.
    """
    if report is None:
        return None
    total = report.total
    return {
        'estimator': report.estimator,
        'num_images': report.num_images,
        'sentences': report.sentences(),
        'points': [
            {**asdict(point), 'loss': point.loss} for point in report.sorted()
        ],
        'roles': [
            {
                **asdict(role),
                'back': 1 - role.others / total if total > 0 else None,
            }
            for role in sorted(report.roles, key=lambda role: role.others)
        ],
    }


def bits_of(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how many layers have how many bits, for each point.

    Returns:
        ``point``, ``bits`` ('float' where a layer with multiply-accumulates
        has none), ``layers`` and ``share``, their share of all
        multiply-accumulates (None if it is unknown).
    """
    found: dict[tuple[str, Any], list[float | None]] = {}
    for layer in layers:
        for point in POINTS:
            bits = layer[f'{point}_bits']
            if bits is None and (
                point in POINTS[2:] or layer['status'] == 'quantized'
            ):
                continue
            key = point, 'float' if bits is None else bits
            found.setdefault(key, []).append(layer['share'])
    return [
        {
            'point': point,
            'bits': bits,
            'layers': len(shares),
            'share': None if None in shares else sum(s or 0 for s in shares),
        }
        for (point, bits), shares in sorted(
            found.items(),
            key=lambda item: (POINTS.index(item[0][0]), str(item[0][1])),
        )
    ]


def _without_times(choice: Any) -> Any:
    """Leave out the times of single layers, which fill a page."""
    if not isinstance(choice, Mapping):
        return choice
    return {k: v for k, v in choice.items() if k != 'latency_table'}


def _types(parts: Any) -> list[str]:
    """Return the types of a recipe's rewrites."""
    return [
        str(part.get('type'))
        for part in (parts if isinstance(parts, list) else [])
        if isinstance(part, Mapping)
    ]


def _amount(calibration: Any) -> str:
    """Return how much data calibrated a file, in words."""
    if isinstance(calibration, Mapping):
        for key in ('num_images', 'num_batches'):
            if calibration.get(key):
                unit = key.removeprefix('num_')
                return f'{calibration[key]} {unit}'
    return '-'


def _number(value: Any) -> float | None:
    """Return a finite number of a JSON file; anything else is None."""
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else None


def _seconds(side: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long the steps of a quantization took."""
    steps = {
        name: seconds
        for name in ('calibration', 'reconstruction')
        if isinstance(part := side.get(name), Mapping)
        and (seconds := _number(part.get('seconds'))) is not None
    }
    return {
        'seconds': _number(side.get('seconds')),
        'steps': steps,
        'commit': str(side.get('commit') or ''),
    }


def _units(side: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the losses of reconstructed units."""
    found = side.get('reconstruction')
    units = found.get('units') if isinstance(found, Mapping) else None
    return [
        {'name': str(unit.get('name') or '')}
        | {
            key: _number(unit.get(key))
            for key in ('loss_start', 'loss_end', 'seconds')
        }
        for unit in (units if isinstance(units, list) else [])
        if isinstance(unit, Mapping)
    ]


def page_content(
    entries: Sequence[dict[str, Any]],
    *,
    float_model: Mapping[str, Any] | None,
    pictures: Sequence[Mapping[str, Any]] = (),
    absent: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the content of a page together.

    Args:
        entries: See :func:`file_entry`, with what was measured in addition.
        float_model: ``file``, ``bytes`` and ``metrics`` of the float model;
            None if nothing of it is known.
        pictures: See ``pictures.draw``.
        absent: Section -> why it is missing, one sentence.
        settings: Of the report itself.
    """
    of_float = dict((float_model or {}).get('metrics') or {})
    metrics = [entry['metrics'] for entry in entries]
    main = main_metric(of_float) or next(
        filter(None, map(main_metric, metrics)), None
    )
    for entry in entries:
        value = entry['metrics'].get(main)
        entry['main'] = value
        entry['kept'] = kept(value, of=of_float.get(main))
        noise = entry.get('noise')
        if noise:
            for key in ('kind', 'part'):
                noise[f'by_{key}'] = by_group(noise['layers'], key=key)
    first = entries[0]['facts']
    return {
        'taskptq': __version__,
        'model': first['model'],
        'config': (settings or {}).get('config') or first['config'],
        'float': dict(float_model) if float_model else None,
        'main_metric': main,
        'metrics': metric_rows(of_float, metrics),
        'classes': class_rows(
            dict((float_model or {}).get('classes') or {}),
            [entry['classes'] for entry in entries],
        ),
        'files': list(entries),
        'pictures': list(pictures),
        'legend': _legend(pictures),
        'absent': dict(absent or {}),
        'settings': dict(settings or {}),
    }


def _legend(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes in all maps, each once."""
    found = {
        one['name']: dict(one)
        for picture in pictures
        for one in picture['legend']
    }
    return list(found.values())


def float_entry(
    path: Path | None,
    *,
    file: QuantizedFile,
    metrics: Mapping[str, Any],
    classes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is known of the float model.

    Args:
        path: Its checkpoint, None if it was not given.
        file: A quantized file made from it.
        metrics: Measured; may be empty.
        classes: Class -> its metric.
    """
    return {
        'file': None if path is None else path.name,
        'bytes': file.facts()['float_bytes'],
        'metrics': dict(metrics),
        'classes': classes_in(metrics) | dict(classes or {}),
    }
