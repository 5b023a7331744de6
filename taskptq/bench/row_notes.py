"""What a row of a table tells of its quantization beside its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reconstruction_seconds(rebuilt: Mapping[str, Any]) -> float:
    """Return what a reconstruction took, with the units it took over.

    Args:
        rebuilt: Report of the reconstruction, or nothing.
    """
    return round(
        rebuilt.get('seconds', 0.0) + rebuilt.get('resumed_seconds', 0.0), 2
    )


def resume_note(rebuilt: Mapping[str, Any]) -> dict[str, str]:
    """Return a row's note if some of its units were not trained for it.

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
    """Return the loss of the calibration set around steps on the network.

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
    """Return what a row tells of its rewrites and of its softmax grids.

    Args:
        report: Report of the quantization.
    """
    notes = {
        'rewrites': report.get('rewrites'),
        'softmax': report['calibration'].get('softmax'),
    }
    return {key: value for key, value in notes.items() if value}
