"""Rows of results tables that name the zoo's file of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskptq.bench.results import Results
from taskptq.bench.zoo.records import printed
from taskptq.bench.zoo.source import ZooFile
from taskptq.core.setting_error import SettingError
from taskptq.recipes import resolve


def name_checkpoint(
    results: Results, file: ZooFile, record: Mapping[str, Any]
) -> bool:
    """Let the row with a file's recipe and seed name it.

    A row whose metric has other digits was measured with another version of
    the code: it names no file.

    Args:
        results: Content of the table's results file; changed in place.
        file: What the zoo lists.
        record: What was measured of it.

    Returns:
        Whether a row names the file now.
    """
    named = False
    for row in results['rows']:
        if not is_row_of(file, row):
            continue
        value = row['metrics'].get(file.metric, row['value'])
        same = printed(value) == printed(record['value'])
        keep = same and record['committed']
        row['checkpoint'] = record['file'] if keep else None
        named = named or keep
    return named


def is_row_of(file: ZooFile, row: Mapping[str, Any]) -> bool:
    """Whether a row has a file's recipe and seed.

    Args:
        file: What the zoo lists.
        row: Row of a results file.
    """
    recipe = row.get('recipe')
    if recipe is None or len(file.recipe) > 1 or row['seed'] != file.seed:
        return False
    if recipe == file.recipe[0]:
        return True
    try:
        # A project's name for it, or the method that a plain name stands for.
        return resolve(recipe) == resolve(file.recipe[0])
    except SettingError:
        return False
