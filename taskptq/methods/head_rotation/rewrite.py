"""Rotate the channels of each head, folded into the projections.

With an orthogonal R, ``(q R)(k R)^T = q k^T`` and ``(A v R) R^T = A v``: q and
k of a head can be rotated by one matrix, and v by one that the output
projection undoes (rotations R2 and R3 of Ashkboos et al., 'QuaRot', NeurIPS
2024, here without any step at run time). A channel far larger than the others
spreads over all of them, so that the peak of a tensor falls towards that of
a normal distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from taskptq.core import AffineQuantizer, QuantizerConfig
from taskptq.core.settings import Flag, Whole, refuse
from taskptq.methods.head_rotation.hadamard import (
    hadamard,
    has_hadamard,
    random_hadamard,
)
from taskptq.methods.rewriting.reader_error import fake, layer_schemes
from taskptq.methods.rewriting.statistics import (
    ATTENDED,
    ChannelStatistics,
    collect_statistics,
)
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    VERIFY_BATCHES,
    CalibrationStats,
    Proposal,
    RewriteEntry,
    RewriteReport,
    RowEdit,
    apply_proposals,
    skipped_entries,
)
from taskptq.methods.rewriting.views import (
    AttentionView,
    Projection,
    select_views,
)
from taskptq.modules.base import Scheme
from taskptq.registry import REWRITES

__all__ = ['HeadRotation']

QUERY_KEY, VALUE = 'query_key', 'value'
# Products of rotated float32 operands round differently.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class _Operands:
    """What a rotation acts on, and the grids that read it.

    Args:
        tensors: (tensor (R, C) of channels head by head, its recipe).
        weights: (weight whose rows, head by head, are rotated; its recipe).
        columns: The same for a weight whose columns are.
    """

    tensors: list[tuple[Tensor, QuantizerConfig | None]]
    weights: list[tuple[Tensor, QuantizerConfig | None]]
    columns: list[tuple[Tensor, QuantizerConfig | None]]


@REWRITES.register_module()
class HeadRotation:
    """Rotate queries with keys, and values, of each attention head, exactly.

    Nothing is added at run time. The matrices are Hadamard's, plain and with
    random signs; an attention gets the one with the least error of the
    rounded operands and weights at the recipe's bits, or none if none lowers
    it. A constant offset of the channels is spread too: center first, with
    AttentionCentering.

    Args:
        queries: Rotate queries and keys, with everything that is added to
            them or multiplied by them.
        values: Rotate values.
        tries: Random signs that are tried, besides none.
        always: Rotate even if the error does not fall.
        patterns: Names of the attentions, as in a QConfig; None is all.
        tolerance: Largest relative change of an attention's output.
        verify_batches: Batches to verify each attention on.

    Raises:
        ValueError: If there is nothing to rotate.
    """

    def __init__(
        self,
        *,
        queries: bool = True,
        values: bool = True,
        tries: int = 4,
        always: bool = False,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
        verify_batches: int = 1,
    ) -> None:
        queries = Flag().read(queries, name='queries')
        values = Flag().read(values, name='values')
        if not (queries or values):
            raise refuse(
                'values',
                False,
                'queries and values are both False: rotate one of them or '
                'remove the rewrite',
            )
        self.parts = [QUERY_KEY] * queries + [VALUE] * values
        self.tries = Whole(low=0, high=1000).read(tries, name='tries')
        self.always = Flag().read(always, name='always')
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')
        self.verify_batches = VERIFY_BATCHES.read(
            verify_batches, name='verify_batches'
        )

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no attention, a pattern matches none, or
                there is no calibration data.
        """
        views, reasons = select_views(
            model, patterns=self.patterns, argument='HeadRotation.patterns'
        )
        found = collect_statistics(
            model,
            views,
            stats.batches,
            forward=stats.forward,
            parts=['query', 'key', 'value', ATTENDED],
        )
        schemes = _view_schemes(model, views, stats)
        proposals = [
            self._propose(
                view, part, found.get(view.name, {}), schemes[view.name]
            )
            for view in views
            for part in self.parts
        ]
        apply_proposals(
            model,
            proposals,
            stats,
            tolerance=self.tolerance,
            verify_batches=self.verify_batches,
        )
        return RewriteReport(
            rewrite=type(self).__name__,
            settings=self._settings(),
            entries=[
                *(
                    entry
                    for part in self.parts
                    for entry in skipped_entries(reasons, part=part)
                ),
                *(proposal.entry for proposal in proposals),
            ],
        )

    def _settings(self) -> dict[str, object]:
        return {
            'parts': list(self.parts),
            'tries': self.tries,
            'always': self.always,
            'patterns': None if self.patterns is None else list(self.patterns),
        }

    def _propose(
        self,
        view: AttentionView,
        part: str,
        found: Mapping[str, ChannelStatistics],
        schemes: tuple[Scheme | None, ...],
    ) -> Proposal:
        """Plan one part of one attention; without edits if impossible."""
        entry = RewriteEntry(name=view.name, part=part, status='skipped')
        obstacle = _obstacle(view, part, found)
        if obstacle:
            entry.reason = obstacle
            return Proposal(view=view, entry=entry)
        operands = _operands(view, part, found, schemes)
        size = _head_size(view, part)
        before = _error(operands, view.num_heads, None)
        best, name, rotation = before, '', None
        for label, matrix in self._matrices(size):
            error = _error(operands, view.num_heads, matrix)
            if (rotation is None and self.always) or error < best:
                best, name, rotation = error, label, matrix
        entry.details = {'error_before': before, 'operations_per_element': 0}
        if rotation is None:
            entry.status = 'unchanged'
            entry.reason = 'no rotation lowers the error of its operands'
            return Proposal(view=view, entry=entry)
        entry.details |= {'error_after': best, 'signs': name, 'size': size}
        edits = (
            value_edits(view, rotation)
            if part == VALUE
            else query_key_edits(view, rotation)
        )
        return Proposal(view=view, entry=entry, edits=edits)

    def _matrices(self, size: int) -> list[tuple[str, Tensor]]:
        found = [('plain', hadamard(size))]
        found += [
            (f'seed {seed}', random_hadamard(size, seed=seed))
            for seed in range(self.tries)
        ]
        return found


def _view_schemes(
    model: nn.Module,
    views: Sequence[AttentionView],
    stats: CalibrationStats,
) -> dict[str, tuple[Scheme | None, ...]]:
    """Return the recipes of each attention, its projections and its output."""
    schemes = layer_schemes(model, stats)
    names = {module: name for name, module in model.named_modules()}

    def of_layer(layer: nn.Module | None, own: str) -> Scheme | None:
        return schemes(own if layer is None else names.get(layer, ''))

    return {
        view.name: (
            schemes(view.name),
            of_layer(view.query.layer, view.name),
            of_layer(view.out.layer, ''),
        )
        for view in views
    }


def query_key_edits(view: AttentionView, rotation: Tensor) -> list[RowEdit]:
    """Rotate queries, keys and what joins their product.

    Args:
        view: The attention.
        rotation: (C, C) orthogonal, C channels of a head: q' = q R.
    """
    parts = [view.query, view.key, *view.query_parts]
    if view.key_position is not None:
        parts.append(view.key_position)
    edits = [edit for part in parts for edit in _rotated_rows(part, rotation)]
    edits += [
        RowEdit.to(table, table.double() @ rotation.to(table.device))
        for table in view.position_tables
    ]
    return edits


def value_edits(view: AttentionView, rotation: Tensor) -> list[RowEdit]:
    """Rotate the values, and the columns of the output projection back.

    Args:
        view: The attention.
        rotation: (C, C) orthogonal, C channels of a head: v' = v R.
    """
    weight = view.out.weight
    columns = rotated(weight.double(), rotation)
    return [
        *_rotated_rows(view.value, rotation),
        RowEdit.to(weight, columns),
    ]


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate channels head by head, x R.

    Args:
        x: (..., heads * C) float64.
        rotation: (C, C).
    """
    heads = x.unflatten(-1, (-1, len(rotation)))
    turned: Tensor = (heads @ rotation.to(x.device)).flatten(-2)
    return turned


def _rotated_rows(projection: Projection, rotation: Tensor) -> list[RowEdit]:
    """Rotate the outputs of a projection: W' = R^T W and b' = b R."""
    weight, bias = projection.weight, projection.bias
    rows = rotated(weight.double().T, rotation).T
    edits = [RowEdit.to(weight, rows)]
    if bias is not None:
        edits.append(RowEdit.to(bias, rotated(bias.double(), rotation)))
    return edits


def _head_size(view: AttentionView, part: str) -> int:
    projection = view.value if part == VALUE else view.query
    return len(projection.weight) // view.num_heads


def _obstacle(
    view: AttentionView, part: str, found: Mapping[str, ChannelStatistics]
) -> str:
    """Return why a part cannot be rotated; empty if it can."""
    if view.extra_keys:
        return (
            'a learned or zero token joins keys and values after their '
            'projection and would not be rotated with them'
        )
    needed = ('value', ATTENDED) if part == VALUE else ('query', 'key')
    if any(one not in found for one in needed):
        return 'it never ran on the calibration data'
    size = _head_size(view, part)
    if part == QUERY_KEY and any(
        len(projection.weight) != len(view.query.weight)
        for projection in (view.key, *view.query_parts)
    ):
        return 'its queries and keys differ in their number of channels'
    if not has_hadamard(size) or size == 1:
        return f'no Hadamard matrix of {size} rows is known'
    return ''


def _operands(
    view: AttentionView,
    part: str,
    found: Mapping[str, ChannelStatistics],
    schemes: tuple[Scheme | None, ...],
) -> _Operands:
    attention, projections, out = (scheme or Scheme() for scheme in schemes)
    if part == QUERY_KEY:
        return _Operands(
            tensors=[
                (found['query'].sample, attention.query),
                (found['key'].sample, attention.key),
            ],
            weights=[
                (view.query.weight, projections.weight),
                (view.key.weight, projections.weight),
            ],
            columns=[],
        )
    return _Operands(
        tensors=[
            (found['value'].sample, attention.value),
            (found[ATTENDED].sample, _per_tensor(out.activation)),
        ],
        weights=[(view.value.weight, projections.weight)],
        columns=[(view.out.weight, out.weight)],
    )


def _per_tensor(config: QuantizerConfig | None) -> QuantizerConfig | None:
    return None if config is None else replace(config, per_channel=False)


def _error(
    operands: _Operands, num_heads: int, rotation: Tensor | None
) -> float:
    """Return the sum of the operands' relative error powers.

    Errors of the factors of a product add up, relative to it, if they are
    independent.
    """

    def turned(x: Tensor) -> Tensor:
        x = x.detach().cpu().double()
        return x if rotation is None else rotated(x, rotation)

    total = 0.0
    for x, config in operands.tensors:
        heads = turned(x).unflatten(-1, (num_heads, -1))
        total += _relative(config, heads.transpose(0, 1)[None], num_heads)
    for weight, config in operands.weights:
        total += _relative(config, turned(weight.T).T, None)
    for weight, config in operands.columns:
        total += _relative(config, turned(weight), None)
    return total


def _relative(
    config: QuantizerConfig | None, x: Tensor, num_heads: int | None
) -> float:
    """Return E|x_hat - x|^2 / E|x|^2; (1, H, N, C) with heads."""
    if config is None:
        return 0.0
    # Learned and aligned grids start from this one.
    config = replace(config, quantizer=AffineQuantizer, quantizer_kwargs={})
    axis = 0 if num_heads is None else None
    x = x.float().contiguous()
    x_hat = fake(config, x, ch_axis=axis, num_heads=num_heads)
    power = float(x.double().square().sum())
    return float((x_hat - x).double().square().sum()) / power if power else 0.0
