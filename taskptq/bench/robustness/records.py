"""The results file: written after every row, shared by processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from taskptq.bench.results import save_results
from taskptq.bench.robustness.evaluation import Outcome
from taskptq.bench.robustness.plan import Row
from taskptq.bench.robustness.subjects import Subject
from taskptq.bench.robustness.summary import summarize

__all__ = ['Records']

FILE = 'robustness.json'
# Settings that all rows of a file share.
SHARED = ('config', 'images', 'seed', 'float_sha256')


class Records:
    """Rows measured so far.

    Args:
        folder: Folder of the results.
        header: What the file says besides its rows, with ``SHARED``.

    Raises:
        ValueError: If the file there is of other settings.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.header = dict(header)
        folder.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> dict[str, Any]:
        """Return the file's content, or that of a new one."""
        if not self.path.is_file():
            return {**self.header, 'subjects': [], 'rows': []}
        content: dict[str, Any] = json.loads(
            self.path.read_text(encoding='utf-8')
        )
        for key in SHARED:
            if content.get(key) != self.header[key]:
                raise ValueError(
                    f'{self.path} has {key} {content.get(key)!r}, this run '
                    f'{self.header[key]!r}: choose another --out'
                )
        return content

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the file."""
        found: list[dict[str, Any]] = self.read()['rows']
        return found

    def missing(self, row: Row, subjects: Sequence[Subject]) -> list[Subject]:
        """Return the models that a row was not measured for."""
        known = next(
            (entry for entry in self.rows() if entry['noise'] == row.name),
            {'results': {}},
        )
        return [
            item
            for item in subjects
            if known['results'].get(item.name, {}).get('sha256') != item.sha256
        ]

    def lock(self, row: Row) -> FileLock:
        """Return the lock of who measures a row; it never waits."""
        folder = self.folder / 'locks'
        folder.mkdir(exist_ok=True)
        return FileLock(folder / f'{row.name}.lock', timeout=0)

    def add(
        self,
        row: Row,
        outcomes: Mapping[str, Outcome],
        *,
        subjects: Sequence[Subject],
        seconds: float,
        processor_seconds: float = 0.0,
        commit: str = '',
    ) -> None:
        """Add what came out for some models.

        Args:
            row: The row.
            outcomes: Name of the model -> outcome.
            subjects: The models.
            seconds: Wall time for all of them.
            processor_seconds: Processor time, which a busy machine changes
                less.
            commit: Commit of the code that measured them.
        """
        digests = {item.name: item.sha256 for item in subjects}
        measured = {
            name: {
                'sha256': digests[name],
                **(
                    {'reason': outcome.reason}
                    if outcome.reason
                    else {'metrics': outcome.metrics}
                ),
            }
            for name, outcome in outcomes.items()
        }
        with self.changed() as content:
            entry = next(
                (e for e in content['rows'] if e['noise'] == row.name), None
            )
            if entry is None:
                entry = {
                    'noise': row.name,
                    'family': row.family,
                    'kind': row.kind,
                    'seconds': 0.0,
                    'processor_seconds': 0.0,
                    'results': {},
                }
                content['rows'].append(entry)
            if len(row.noises) > 1:
                entry['of'] = [noise.name for noise in row.noises]
            entry['results'] |= measured
            for key, value in (
                ('seconds', seconds),
                ('processor_seconds', processor_seconds),
            ):
                # Files of earlier versions lack the second.
                entry[key] = round(entry.get(key, 0.0) + value, 2)
            entry['commit'] = commit

    def finish(
        self,
        order: Sequence[str],
        subjects: Sequence[Subject],
        *,
        run: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sort the rows, name the models, and add the run and scores.

        Args:
            order: Names of the rows.
            subjects: The models.
            run: ``command``, ``commit``, ``seconds``, ``processor_seconds``
                and ``processes``; it is added to the runs that measured the
                rows before.
            environment: Versions and resources.
        """
        with self.changed() as content:
            known = {name: place for place, name in enumerate(order)}
            content['rows'].sort(
                key=lambda entry: known.get(entry['noise'], len(known))
            )
            before = {entry['name']: entry for entry in content['subjects']}
            for item in subjects:
                before[item.name] = {
                    'name': item.name,
                    'kind': item.kind,
                    'file': item.file,
                    'sha256': item.sha256,
                }
            content['subjects'] = list(before.values())
            content.setdefault('runs', []).append(dict(run))
            content['environment'] = dict(environment or {})
            content['summary'] = summarize(content)
        return content

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """Change the content while no other process does."""
        with FileLock(self.folder / f'.{FILE}.lock'):
            content = self.read()
            yield content
            save_results(content, self.path)
