"""The output error of the readers of a group, for candidate scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from taskptq.methods.equalization.scale_groups import LayerGroup
from taskptq.methods.rewriting.reader_error import ReaderError, layer_schemes
from taskptq.methods.rewriting.readers import Reader, collect_inputs
from taskptq.methods.rewriting.verified_rewrite import CalibrationStats

# Exponents that are tried.
ALPHAS = tuple(step / 20 for step in range(20))


@dataclass(frozen=True, kw_only=True)
class GroupErrors:
    """Errors of the readers of one group.

    Args:
        readers: Those that are quantized and whose input has one scale.
        num_float: Readers that stay float.
    """

    readers: tuple[ReaderError, ...]
    num_float: int = 0

    def total(self, scales: Tensor) -> float:
        """Return the mean relative output error of the readers.

        Args:
            scales: (C,), divisor of each channel.
        """
        found = [reader.error(scales) for reader in self.readers]
        return sum(found) / len(found)


def no_change(errors: GroupErrors) -> str:
    """Return why no scale can help; empty if one may."""
    if errors.readers:
        return ''
    if errors.num_float:
        return 'none of its readers is quantized'
    return 'its input has a scale for each channel already'


def group_errors(
    model: nn.Module, groups: Sequence[LayerGroup], stats: CalibrationStats
) -> dict[str, GroupErrors]:
    """Sample what the readers of all groups read.

    Args:
        model: Float model.
        groups: Its groups.
        stats: Calibration data; its ``qconfig`` gives the bits.

    Returns:
        Errors by the giver's name.
    """
    schemes = layer_schemes(model, stats)
    readers = {
        group.name: [
            Reader(name=name, module=layer) for name, layer in group.readers
        ]
        for group in groups
    }
    flat = [reader for found in readers.values() for reader in found]
    samples = collect_inputs(model, flat, stats) if flat else {}
    result = {}
    for group in groups:
        found = [
            ReaderError(
                reader=reader,
                sample=samples[reader.label],
                scheme=scheme,
                gains=group.gains.get(reader.name),
            )
            for reader in readers[group.name]
            if reader.label in samples
            and (scheme := schemes(reader.name)) is not None
        ]
        result[group.name] = GroupErrors(
            readers=tuple(one for one in found if not one.per_channel_input),
            num_float=len(group.readers) - len(found),
        )
    return result
