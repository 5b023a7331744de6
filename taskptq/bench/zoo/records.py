"""What was measured of the zoo's files: ``configs/zoo.json``.

Name -> the settings that made the file, ``file``, ``committed``, ``sha256``,
``bytes``, ``value``, ``metrics``, ``command``, ``commit``, ``environment``,
and ``onnx``: the exported ``parts`` (``file``, ``sha256``, ``bytes``) with
``committed``, ``value`` and ``metrics``, ``dynamic`` if it takes images of
every size, ``export_images`` if the list gives their number, and ``latency``,
see ``latency.py``; ``commit`` and ``environment`` if it was made later than
the file. ``refused`` is the reason why there is no export, ``not_evaluated``
why it has no value.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from taskptq.bench.results import save_results
from taskptq.bench.zoo.source import ZooFile

RECORDS = Path('configs') / 'zoo.json'
# Of one file in the repository.
MAX_BYTES = 1_500_000
DIGITS = 8


def load_records(path: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Read what was measured; nothing if there is no file."""
    if not path.is_file():
        return {}
    content: dict[str, dict[str, Any]] = json.loads(
        path.read_text(encoding='utf-8')
    )
    return content


def put_record(
    name: str, record: Mapping[str, Any], *, path: Path = RECORDS
) -> None:
    """Add or replace one file's record.

    Args:
        name: Name of the file.
        record: See the module.
        path: The records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'.{path.name}.lock')):
        records = load_records(path)
        records[name] = dict(record)
        save_results({key: records[key] for key in sorted(records)}, path)


def published_name(name: str, *, sha256: str, suffix: str) -> str:
    """Return a file's name in the repository.

    >>> published_name('net_w8a8_coco', sha256='0123456789ab', suffix='.pth')
    'net_w8a8_coco-01234567.pth'
    """
    return f'{name}-{sha256[:DIGITS]}{suffix}'


def is_outdated(file: ZooFile, record: Mapping[str, Any]) -> bool:
    """Whether a record was measured with other settings than the list's."""
    settings = file.settings()
    return {key: record.get(key) for key in settings} != settings


def publish(source: Path, target: Path) -> None:
    """Copy a file into the repository; the same bytes stay as they are."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def printed(value: float) -> str:
    """Return a metric's printed digits: three of a share, two of percents.

    >>> printed(0.28135), printed(65.194)
    ('0.281', '65.19')
    """
    return f'{value:.2f}' if abs(value) > 1 else f'{value:.3f}'
