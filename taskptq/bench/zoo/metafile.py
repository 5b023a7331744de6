"""The zoo in OpenMMLab's model index: entries of ``metafile.yml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskptq.bench.zoo.page import Measured
from taskptq.bench.zoo.source import ZooFile

# Says that an entry was written from the zoo, and of which float model.
MADE_FROM = 'Float Model'
TRAINED_HERE = 'trained in this repository'


def with_quantized(
    models: Sequence[Mapping[str, Any]], files: Sequence[Measured]
) -> list[Mapping[str, Any]]:
    """Return a metafile's models, with the zoo's files behind their own.

    Args:
        models: Entries of ``Models``; those of quantized files are replaced.
        files: The zoo's files with their records.
    """
    result: list[Mapping[str, Any]] = []
    for model in models:
        if MADE_FROM in (model.get('Metadata') or {}):
            continue
        result.append(model)
        for file, record in files:
            if file.table.name == model['Name']:
                result.append(as_model(file, record, of=model))
    return result


def as_model(
    file: ZooFile, record: Mapping[str, Any], *, of: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one file's entry.

    Args:
        file: What the zoo lists.
        record: What was measured of it.
        of: Entry of the float model.
    """
    weights = {'Weights': record['file']} if record['committed'] else {}
    entry: dict[str, Any] = {
        'Name': file.name,
        'In Collection': of['In Collection'],
        'Config': file.table.config,
        **weights,
        'Metadata': {
            **(
                {'Training Data': file.training_data}
                if file.training_data
                else {}
            ),
            MADE_FROM: of['Name'],
            'Float Weights': file.weights.get('origin', TRAINED_HERE),
            'License': file.weights.get('license', 'Apache-2.0'),
            'Recipe': ' + '.join(file.recipe),
            'Command': record['command'],
            'SHA256': record['sha256'],
            'Bytes': record['bytes'],
            **onnx_facts(record.get('onnx')),
        },
        'Results': list(results_of(file, record)),
    }
    return entry


def onnx_facts(onnx: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entry on a file's export; nothing without one.

    Args:
        onnx: See ``records.py``.
    """
    if not onnx or 'parts' not in onnx:
        return {}
    parts = [
        {
            'File': part['file'],
            'Committed': onnx['committed'],
            'SHA256': part['sha256'],
            'Bytes': part['bytes'],
        }
        for part in onnx['parts']
    ]
    return {'ONNX': parts}


def results_of(
    file: ZooFile, record: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Walk over a file's results: simulated, and in ONNX Runtime.

    Args:
        file: What the zoo lists.
        record: What was measured of it.
    """
    facts = file.table.metafile
    onnx = record.get('onnx') or {}
    runs: list[tuple[dict[str, str], float]] = [({}, record['value'])]
    if onnx.get('value') is not None:
        runs.append(({'Runtime': 'ONNX Runtime'}, onnx['value']))
    for where, value in runs:
        yield {
            'Task': facts['task'],
            'Dataset': file.table.dataset,
            **where,
            'Metrics': {
                facts['metric']: round(value * facts.get('factor', 1), 2)
            },
        }
