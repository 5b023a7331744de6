"""Notes on the quantization in a table's row, in addition to its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reconstruction_seconds(rebuilt: Mapping[str, Any]) -> float:
    """Return the seconds of a reconstruction, including resumed units.

    Args:
        rebuilt: Report of the reconstruction; may be empty.
    """
    return round(
        rebuilt.get('seconds', 0.0) + rebuilt.get('resumed_seconds', 0.0), 2
    )


def resume_note(rebuilt: Mapping[str, Any]) -> dict[str, str]:
    """Return a note if some units of a row were not trained for it.

    Args:
        rebuilt: Report of the reconstruction.
    """
    if not rebuilt.get('resumed_units'):
        return {}
    return {
        'note': f'{rebuilt["resumed_units"]} units were taken from an '
        'interrupted run or from a row with the same blocks; '
        'reconstruction_seconds counts the '
        f'{rebuilt["resumed_seconds"]:.0f} s that they took '
        'there'
    }


def set_loss_note(rebuilt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the calibration set's loss before and after network steps.

    Args:
        rebuilt: Report of the reconstruction.
    """
    for unit in rebuilt.get('units', ())[-1:]:
        if unit.get('set_loss_start') is not None:
            return {
                'network_set_loss': {
                    'start': unit['set_loss_start'],
                    'end': unit['set_loss_end'],
                    'taken_back': unit['taken_back'],
                }
            }
    return {}


def rewrite_notes(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's entries on its rewrites and its softmax grids.

    Args:
        report: Report of the quantization.
    """
    notes = {
        'rewrites': report.get('rewrites'),
        'softmax': report['calibration'].get('softmax'),
    }
    return {key: value for key, value in notes.items() if value}
