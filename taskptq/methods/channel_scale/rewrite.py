"""Scale the input channels of single layers, where no layer can give it.

``W x = (W s)(x / s)`` holds behind any function. Between layers that only a
ReLU separates, 1 / s folds into the first (cross-layer equalization), and into
a LayerNorm as well (Outlier Suppression+). Behind SiLU, a sum or a
concatenation it cannot: there it stays, one multiplication for each element,
in front of the quantizer. s is searched for the least output error of the
quantized layer, among those of SmoothQuant (Xiao et al., ICML 2023) and AWQ
(Lin et al., MLSys 2024). The midpoint of each channel may be subtracted as
well, which is the run-time form of Outlier Suppression+ (Wei et al., EMNLP
2023) for norms that others read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Flag, Number
from taskptq.hosts.class_lookup import lookup
from taskptq.methods.equalization.edits import column_peaks
from taskptq.methods.equalization.rewrite import equalizing_scales
from taskptq.methods.equalization.scale_groups import norm_gains
from taskptq.methods.rewriting.layer_edits import LayerEdit, apply_layer_edits
from taskptq.methods.rewriting.reader_error import ReaderError, layer_schemes
from taskptq.methods.rewriting.readers import Reader, collect_inputs
from taskptq.methods.rewriting.statistics import gather
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
    RowEdit,
)
from taskptq.modules.conv import QuantConv2d
from taskptq.modules.linear import QuantLinear
from taskptq.modules.scaled import ScaledConv2d, ScaledLinear
from taskptq.modules.sharing import SharedInputs
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.tree import replace_modules
from taskptq.registry import REWRITES

__all__ = ['ChannelScale']

TOLERANCE = 1e-4
# Exponents that are tried, with the channels' peaks and with their means.
ALPHAS = tuple(step / 10 for step in range(10))
KINDS: dict[type, type[ScaledConv2d | ScaledLinear]] = {
    QuantConv2d: ScaledConv2d,
    QuantLinear: ScaledLinear,
}


@dataclass(kw_only=True)
class _Chosen:
    """A layer that is to be scaled.

    Args:
        reader: The layer.
        scales: (C,) float64, divisors of its input channels.
        shift: (C,) float64, subtracted from them first; None is 0.
        entry: Its entry in the report.
    """

    reader: Reader
    scales: Tensor
    shift: Tensor | None
    entry: RewriteEntry


@REWRITES.register_module()
class ChannelScale:
    """Divide input channels by a scale in front of the grid, exactly.

    For linear layers and convolutions whose input has one grid, whatever is
    in front of them. Costs one multiplication (and an addition, with a shift)
    for each element of the input, which the report states; layers that win
    less than ``least_gain`` stay as they are. Where a scale costs nothing,
    run CrossLayerEqualization or ChannelShiftScale first.

    Args:
        shift: Whether channels may be shifted too, where no zeros are padded
            and the layer has a bias.
        least_gain: Least factor by which the error has to fall; a shift has
            to lower it by that factor once more.
        least_error: Layers whose relative error power is below this stay.
        limit: Scales differ from the median by at most this factor.
        patterns: Names of the layers, as in a QConfig; None is all.
        tolerance: Largest relative change of a layer's output.
    """

    def __init__(
        self,
        *,
        shift: bool = True,
        least_gain: float = 1.2,
        least_error: float = 1e-3,
        limit: float = 100.0,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.shift = Flag().read(shift, name='shift')
        self.least_gain = Number(low=1, high=1e6).read(
            least_gain, name='least_gain'
        )
        self.least_error = Number(low=0, high=1).read(
            least_error, name='least_error'
        )
        self.limit = Number(low=1, high=1e6).read(limit, name='limit')
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no calibration data, an activation is not
                finite, or a pattern matches no layer.
        """
        readers = self._readers(model)
        schemes = layer_schemes(model, stats)
        readers = [one for one in readers if schemes(one.name) is not None]
        samples = collect_inputs(model, readers, stats)
        with calibration_mode(model):
            gains = norm_gains(
                model, lambda: stats.forward(model, stats.batches[0])
            )
        entries, chosen = [], []
        for reader in readers:
            scheme = schemes(reader.name)
            if reader.label not in samples or scheme is None:
                continue
            error = ReaderError(
                reader=reader,
                sample=samples[reader.label],
                scheme=scheme,
                gains=gains.get(reader.name),
            )
            if error.per_channel_input:
                continue
            entry, found = self._choose(reader, error)
            entries.append(entry)
            chosen += [] if found is None else [found]
        standing = _apply(model, chosen, stats, tolerance=self.tolerance)
        return RewriteReport(
            rewrite=type(self).__name__,
            settings={
                'shift': self.shift,
                'least_gain': self.least_gain,
                'least_error': self.least_error,
                'limit': self.limit,
                'patterns': None
                if self.patterns is None
                else list(self.patterns),
            },
            entries=entries,
            structure=_structure(standing),
        )

    @classmethod
    def replay(cls, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Make the layers of a file scaled ones; see ``StructuralRewrite``.

        Raises:
            ValueError: If a name is not a layer that can be scaled.
        """
        known = {reader.name: reader for reader in _layers(model)}
        names, shifted = (
            _read_names(structure.get(key, ()), known)
            for key in ('layers', 'shifted')
        )
        if not names or not set(shifted) <= set(names):
            raise ValueError('layers with scaled inputs are missing')
        for name in shifted:
            if known[name].pads:
                raise ValueError(
                    f'{name!r} pads zeros: its input cannot be shifted'
                )
        replace_modules(
            model,
            {
                id(known[name].module): _wrapped(
                    known[name].module, shifted=name in shifted
                )
                for name in names
            },
        )

    def _readers(self, model: nn.Module) -> list[Reader]:
        readers = _layers(model)
        if self.patterns is None:
            return readers
        check_all_used(
            self.patterns,
            [reader.name for reader in readers],
            argument='ChannelScale.patterns',
        )
        return [
            reader
            for reader in readers
            if any(matches(reader.name, one) for one in self.patterns)
        ]

    def _choose(
        self, reader: Reader, error: ReaderError
    ) -> tuple[RewriteEntry, _Chosen | None]:
        """Search the scales of one layer; None if it had better stay."""
        same = torch.ones(reader.num_channels, dtype=torch.float64)
        before = error.error(same)
        entry = RewriteEntry(
            name=reader.name,
            part='input',
            status='unchanged',
            details={'error_before': before},
        )
        if before < self.least_error:
            entry.reason = f'its error is below {self.least_error:g}'
            return entry, None
        best, scales = self._search(error, None)
        shift = None
        if self.shift and not reader.pads and reader.bias is not None:
            sample = error.sample
            center = (sample.min_val.double() + sample.max_val.double()) / 2
            shifted, found = self._search(error, center)
            if shifted * self.least_gain <= best:
                best, scales, shift = shifted, found, center
        entry.details['error_after'] = best
        if before < self.least_gain * best:
            entry.reason = (
                f'its error falls by less than a factor of {self.least_gain:g}'
            )
            return entry, None
        operations = 1 if shift is None else 2
        entry.details |= {
            'scales': [float(scales.min()), float(scales.max())],
            'shifted': shift is not None,
            'operations_per_element': operations,
            'operations_per_mac': operations * _price(reader),
        }
        return entry, _Chosen(
            reader=reader, scales=scales, shift=shift, entry=entry
        )

    def _search(
        self, error: ReaderError, shift: Tensor | None
    ) -> tuple[float, Tensor]:
        """Return the least error, and the scales that give it."""
        sample = error.sample
        center = torch.zeros(len(sample.min_val)) if shift is None else shift
        peaks = torch.maximum(
            (sample.min_val - center).abs(), (sample.max_val - center).abs()
        )
        means = (sample.rows - center[:, None, None]).abs().mean(dim=(0, 2, 3))
        weight = column_peaks(error.reader.module)
        scales = torch.ones(len(peaks), dtype=torch.float64)
        best = error.error(scales, shift)
        for size in (peaks, means):
            for alpha in ALPHAS:
                found = equalizing_scales(
                    size, weight, alpha=alpha, limit=self.limit
                )
                candidate = error.error(found, shift)
                if candidate < best:
                    best, scales = candidate, found
        return best, scales


def _structure(standing: Sequence[_Chosen]) -> dict[str, Any]:
    """Return what a file needs to make the same layers again."""
    names = [one.reader.name for one in standing]
    shifted = [one.reader.name for one in standing if one.shift is not None]
    return {
        **({'layers': names} if names else {}),
        **({'shifted': shifted} if shifted else {}),
    }


def _read_names(names: Any, known: Mapping[str, Reader]) -> list[str]:
    """Check the names of a file's scaled layers.

    Raises:
        ValueError: If there are none, or one cannot be scaled.
    """
    if not isinstance(names, list | tuple) or len(names) > len(known):
        raise ValueError('layers with scaled inputs are not a list')
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ValueError(
                f'{str(name)[:100]!r} is no layer whose input could be scaled'
            )
    return list(names)


def _layers(model: nn.Module) -> list[Reader]:
    """Return the layers that may be scaled, by their counterparts.

    Projections of attentions that quantize a common input once are not: they
    would have to scale it alike.
    """
    shared = {
        id(child)
        for module in model.modules()
        if (found := lookup(module)) is not None
        and issubclass(found, SharedInputs)
        for child in module.children()
    }
    return [
        Reader(name=name, module=module)
        for name, module in model.named_modules()
        if name and lookup(module) in KINDS and id(module) not in shared
    ]


def _wrapped(
    layer: nn.Module, *, shifted: bool
) -> ScaledConv2d | ScaledLinear:
    counterpart = lookup(layer)
    assert counterpart is not None
    return KINDS[counterpart].wrap(layer, shifted=shifted)


def _price(reader: Reader) -> float:
    """Return the elements of the input for each multiply-accumulate."""
    weight = reader.weight
    stride = getattr(reader.module, 'stride', (1, 1))
    per_element = weight[:, 0].numel() / reader.groups
    return float(stride[0] * stride[1] / per_element)


def _apply(
    model: nn.Module,
    chosen: Sequence[_Chosen],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> list[_Chosen]:
    """Scale the layers; undo those whose outputs change.

    Returns:
        The layers that stay scaled.
    """
    own = [one.reader.name for one in chosen]
    common = set(own).intersection(*gather(own))
    chosen = [one for one in chosen if one.reader.name in common]
    layers = {one.reader.name: one.reader.module for one in chosen}
    new = {
        one.reader.name: _wrapped(
            one.reader.module, shifted=one.shift is not None
        )
        for one in chosen
    }
    replace_modules(
        model, {id(layers[name]): layer for name, layer in new.items()}
    )
    plans = [
        LayerEdit(
            entry=one.entry,
            readers={one.reader.name: new[one.reader.name]},
            edits=_edits(one, new[one.reader.name]),
        )
        for one in chosen
    ]
    standing = apply_layer_edits(model, plans, stats, tolerance=tolerance)
    names = {name for plan in standing for name in plan.readers}
    replace_modules(
        model,
        {id(new[name]): layers[name] for name in new if name not in names},
    )
    return [one for one in chosen if one.reader.name in names]


def _edits(one: _Chosen, layer: ScaledConv2d | ScaledLinear) -> list[RowEdit]:
    reader, scales = one.reader, one.scales
    weight = reader.weight
    columns = reader.by_column(scales).to(weight.device)
    edits = [
        RowEdit.to(layer.input_factor, 1 / scales),
        RowEdit.to(weight, weight.double() * columns),
    ]
    bias, offset = reader.bias, layer.input_offset
    if one.shift is not None and bias is not None and offset is not None:
        shift = reader.by_column(one.shift).to(weight.device)
        returned = (weight.double() * shift).flatten(1).sum(dim=1)
        edits.append(RowEdit.to(offset, -one.shift / scales))
        edits.append(RowEdit.to(bias, bias.double() + returned))
    return edits
