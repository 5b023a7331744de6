"""Measure the rows that are missing, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from filelock import Timeout

from taskptq.analysis.page.metrics import main_metric
from taskptq.bench.robustness.attacking import AttackEvaluation
from taskptq.bench.robustness.evaluation import (
    Outcome,
    RobustnessEvaluation,
)
from taskptq.bench.robustness.plan import COMBINED, Row, worst_options
from taskptq.bench.robustness.records import Records
from taskptq.bench.robustness.subjects import FLOAT, Subject

__all__ = ['Session', 'describe']


@dataclass(kw_only=True)
class Session:
    """What a run works with.

    Args:
        evaluation: Test images and evaluator.
        subjects: The models, the float one first.
        records: The results.
        log: Shows a line.
        commit: Commit of the code, recorded with each row.
    """

    evaluation: RobustnessEvaluation
    subjects: Sequence[Subject]
    records: Records
    log: Callable[[str], None]
    commit: str = ''

    def measure(self, rows: Sequence[Row]) -> None:
        """Measure rows; those that another process is at are left to it.

        Args:
            rows: Rows asked for.
        """
        for number, row in enumerate(rows, start=1):
            if not self.records.missing(row, self.subjects):
                continue
            try:
                with self.records.lock(row):
                    missing = self.records.missing(row, self.subjects)
                    if not missing:
                        continue
                    spent = time.process_time()
                    outcomes, seconds = self._measure(row, missing)
                    self.records.add(
                        row,
                        outcomes,
                        subjects=missing,
                        seconds=seconds,
                        processor_seconds=time.process_time() - spent,
                        commit=self.commit,
                    )
            except Timeout:
                continue
            self.log(
                f'[{number}/{len(rows)}] {row.name}: '
                f'{describe(outcomes)} ({seconds:.0f} s)'
            )

    def _measure(
        self, row: Row, subjects: Sequence[Subject]
    ) -> tuple[dict[str, Outcome], float]:
        """Measure a row for some models."""
        start = time.perf_counter()
        if row.attack is None:
            outcomes = self.evaluation.run(subjects, row.noises)
        else:
            outcomes = AttackEvaluation(self.evaluation).run(
                subjects, row.attack, source=self.subjects[0]
            )
        return outcomes, time.perf_counter() - start

    def combined(self, rows: Sequence[Row]) -> Row | None:
        """Return the row of the worst options at once, if there is any.

        Args:
            rows: The rows of single noises, measured.
        """
        values = float_values(self.records)
        singles = [row for row in rows if row.family == 'systems']
        try:
            return worst_options(singles, values)
        except ValueError:
            return None


def float_values(records: Records) -> dict[str, float]:
    """Return the main metric of the float model in each measured row."""
    values = {}
    for entry in records.rows():
        if entry['noise'] == COMBINED:
            continue
        found = entry['results'].get(FLOAT, {})
        if 'metrics' in found:
            name = main_metric(found['metrics'])
            values[entry['noise']] = found['metrics'][name] if name else 0.0
    return values


def describe(outcomes: dict[str, Outcome]) -> str:
    """Return a line on what came out.

    >>> describe({'float': Outcome(metrics={'mIoU': 65.2})})
    'float 65.2'
    """
    reasons = {outcome.reason for outcome in outcomes.values()}
    if len(reasons) == 1 and reasons != {''}:
        return f'not applicable: {reasons.pop()}'
    return ', '.join(
        f'{name} not applicable: {outcome.reason}'
        if outcome.reason
        else f'{name} {value_of(outcome):.4g}'
        for name, outcome in outcomes.items()
    )


def value_of(outcome: Outcome) -> float:
    """Return the main metric; a model that predicts nothing scores 0."""
    name = main_metric(outcome.metrics)
    return outcome.metrics[name] if name else 0.0
