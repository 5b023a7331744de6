"""Losses of all tensors and bit widths at once, from gradients.

At the float point a small error e of a tensor x changes the outputs by J e, so
the output loss is ``e^T J^T W J e`` with the diagonal weights W of
``OutputLoss``: the Gauss-Newton approximation (Schraudolph, 'Fast curvature
matrix-vector products', Neural Computation 2002). With random z of covariance
W, one backward pass gives ``g = J^T z`` of every tensor, and ``E[(g . e)^2]``
is that loss (Hutchinson, 1989), for any number of candidate errors e at the
cost of computing them. Errors of different tensors are taken as independent,
so losses add up.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.grids import Rounder, check_candidates
from taskptq.analysis.sensitivity.loss import OutputLoss
from taskptq.analysis.sensitivity.points import (
    View,
    head_batches,
    small_batches,
    view_points,
)
from taskptq.analysis.sensitivity.products import error_products
from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.analysis.sensitivity.trace import weights_of
from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import Quantizer, float_only
from taskptq.core.switches import is_weight_quantizer, quantizers

__all__ = ['CANDIDATES', 'NotDifferentiableError', 'estimate_losses']

logger = logging.getLogger('taskptq')

CANDIDATES = (4, 6, 8, 16)
# Images that ranges of other bits, signals and the outputs' scales are from.
SURVEYED = 8
# Random probes in all that make the estimate stable: each has a relative
# standard deviation of up to sqrt(2).
LEAST_PROBES = 64
# Probes of one image differ less than images do.
MOST_PROBES_PER_IMAGE = 4

# Graphs of more images need memory and are no faster.
IMAGES_AT_ONCE = 4

Losses = dict[str, dict[int, float]]


class NotDifferentiableError(ValueError):
    """A model's outputs have no gradient with respect to its tensors."""


def estimate_losses(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
    adapter: Any,
    candidates: Sequence[int] = CANDIDATES,
    num_probes: int | None = None,
    seed: int = 0,
    rounded: Mapping[str, Tensor] | None = None,
    advance: Callable[[int], object] | None = None,
) -> SensitivityReport:
    """Estimate the output loss of every tensor at every candidate bit width.

    One pass of forward and backward over the images, after a forward pass
    over the first few of them for statistics.

    Args:
        model: Prepared and calibrated, not frozen.
        batches: Collated batches.
        forward: Runs the model on one batch.
        adapter: The model's adapter.
        candidates: Bits to estimate; those of each quantizer are added.
        num_probes: Random probes per batch; None takes as many as give 64
            with all images together, at most 4 of each.
        seed: Seed of the probes.
        rounded: Weights as a better rounding leaves them, by quantizer; at
            its present bits, the loss of a weight is that of these values.
        advance: Called after each part of a batch with its number of
            images.

    Raises:
        NotDifferentiableError: If no gradient reaches the quantizers: use
            ``measure_losses``.
        ValueError: If there is no batch, a candidate is impossible or no
            output has a signal.
    """
    if not batches:
        raise ValueError('there is no batch: give at least one')
    start = time.perf_counter()
    wanted = check_candidates(candidates)
    parts = small_batches(batches, size=IMAGES_AT_ONCE)
    few = head_batches(parts, num_images=SURVEYED)
    view = view_points(model, few, forward=forward, adapter=adapter)
    found = _Pass(
        model,
        {
            name: view.grids(name, candidates=wanted)
            | _own_rounding(view, name, rounded or {})
            for name in view.seen
        },
        adapter=adapter,
        loss=fit_loss(model, few, adapter=adapter),
        num_probes=num_probes or _enough_probes(batches),
        seed=seed,
    )
    num_images = 0
    with found.active():
        # The first few are in memory already.
        for batch in itertools.chain(few, parts):
            found.run(batch)
            count = batch_length(batch) or 1
            num_images += count
            if advance is not None:
                advance(count)
    return SensitivityReport(
        points=view.points(found.losses(num_images=num_images)),
        estimator='gradient',
        num_images=num_images,
        seconds=time.perf_counter() - start,
    )


def _own_rounding(
    view: View, name: str, rounded: Mapping[str, Tensor]
) -> dict[int, Rounder]:
    """Return what a weight is at its present bits, if that is given."""
    if name not in rounded:
        return {}
    value = rounded[name]
    return {view.seen[name].quantizer.spec.num_bits: lambda _: value}


def _enough_probes(batches: Sequence[Any]) -> int:
    """Return how many probes of each batch make the estimate stable."""
    about = len(batches) * max(1, batch_length(batches[0]))
    return min(MOST_PROBES_PER_IMAGE, max(1, -(-LEAST_PROBES // about)))


@torch.no_grad()
def fit_loss(
    model: nn.Module, batches: Sequence[Any], *, adapter: Any
) -> OutputLoss:
    """Return the output loss, scaled on some batches."""
    with calibration_mode(model), float_only(model):
        heads = [adapter.forward_heads(model, batch) for batch in batches]
    images = sum(map(batch_length, batches)) or len(batches)
    return OutputLoss(adapter, heads, num_images=images)


class _Pass:
    """Collect ``(g . e)^2`` of every tensor and candidate.

    Args:
        model: Prepared and calibrated.
        grids: What rounds each tensor, by quantizer and bits.
        adapter: The model's adapter.
        loss: The output loss.
        num_probes: Random probes of each batch.
        seed: Their seed.
    """

    def __init__(
        self,
        model: nn.Module,
        grids: Mapping[str, Mapping[int, Rounder]],
        *,
        adapter: Any,
        loss: OutputLoss,
        num_probes: int,
        seed: int,
    ) -> None:
        self.model = model
        self.grids = grids
        self.adapter = adapter
        self.loss = loss
        self.num_probes = num_probes
        self._generator = torch.Generator().manual_seed(seed)
        self.weights = {
            name: weight
            for name, weight in weights_of(model).items()
            if name in grids
        }
        self._totals: dict[tuple[str, int], float] = {}
        self._dots: dict[tuple[str, int], Tensor] = {}
        self._images = 1
        parameter = next(model.parameters())
        # Gives tensors a gradient that depend on no weight.
        self._anchor = torch.zeros((), device=parameter.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let gradients reach weights and quantizers, and nothing else."""
        kept = {id(weight) for weight in self.weights.values()}
        parameters = [(p, p.requires_grad) for p in self.model.parameters()]
        named: list[tuple[str, Quantizer]] = [
            (name, quantizer)
            for name, quantizer in quantizers(self.model)
            if name in self.grids and not is_weight_quantizer(name)
        ]
        self._anchor.requires_grad_(True)
        with ExitStack() as stack:
            stack.enter_context(calibration_mode(self.model))
            stack.enter_context(float_only(self.model))
            stack.enter_context(torch.enable_grad())
            for parameter, needed in parameters:
                stack.callback(parameter.requires_grad_, needed)
                parameter.requires_grad_(id(parameter) in kept)
            for name, quantizer in named:
                handle = quantizer.register_forward_hook(self._tap(name))
                stack.callback(handle.remove)
            yield

    def run(self, batch: Any) -> None:
        """Run one batch forward, and backward from each probe."""
        self._images = batch_length(batch) or 1
        try:
            heads = self.adapter.forward_heads(self.model, batch)
        except RuntimeError as error:
            if 'grad' not in str(error) and 'inplace' not in str(error):
                raise
            raise self._refusal(str(error)) from error
        for number in range(self.num_probes):
            probe = self.loss.probe(heads, generator=self._generator)
            if not probe.requires_grad:
                raise self._refusal('its outputs are detached')
            self._run_back(probe, again=number + 1 < self.num_probes)

    def _run_back(self, probe: Tensor, *, again: bool) -> None:
        """Collect from one probe.

        Args:
            probe: Scalar.
            again: Whether another probe follows on the same graph.
        """
        leaves = [self._anchor, *self.weights.values()]
        try:
            found = torch.autograd.grad(
                probe, leaves, retain_graph=again, allow_unused=True
            )
        except RuntimeError as error:
            raise self._refusal(str(error)) from error
        self._add_weights(found[1:])
        self._square()

    def losses(self, *, num_images: int) -> Losses:
        """Return the mean losses by quantizer and bits."""
        found: Losses = {
            name: dict.fromkeys(grids, 0.0)
            for name, grids in self.grids.items()
        }
        for (name, bits), total in self._totals.items():
            found[name][bits] = total / num_images
        return found

    def _tap(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            # Another tensor: its gradient is that of this reader alone.
            tapped = (
                out.view_as(out) if out.requires_grad else out + self._anchor
            )
            value = out.detach()
            tapped.register_hook(lambda g: self._add(name, value, g))
            return tapped

        return hook

    @torch.no_grad()
    def _add(self, name: str, value: Tensor, gradient: Tensor) -> None:
        """Add the products of a gradient with each candidate's error."""
        rows = self._images if value.shape[0] % self._images == 0 else 1
        for bits, rounded in self.grids[name].items():
            dots = error_products(value, gradient, rounded=rounded, rows=rows)
            self._note(name, bits, dots)

    @torch.no_grad()
    def _add_weights(self, gradients: Sequence[Tensor | None]) -> None:
        for (name, weight), gradient in zip(
            self.weights.items(), gradients, strict=True
        ):
            if gradient is None:
                continue
            for bits, rounded in self.grids[name].items():
                dots = error_products(
                    weight, gradient, rounded=rounded, rows=1
                )
                self._note(name, bits, dots)

    def _note(self, name: str, bits: int, dots: Tensor) -> None:
        """Add g . e of one call; a layer may be called more than once."""
        known = self._dots.get((name, bits))
        if known is None:
            self._dots[name, bits] = dots
        elif known.shape == dots.shape:
            self._dots[name, bits] = known + dots
        else:
            self._dots[name, bits] = (known.sum() + dots.sum())[None]

    def _square(self) -> None:
        for key, dots in self._dots.items():
            squares = float(dots.square().sum()) / self.num_probes
            self._totals[key] = self._totals.get(key, 0.0) + squares
        self._dots.clear()

    def _refusal(self, reason: str) -> NotDifferentiableError:
        line = (reason.splitlines() or [''])[0]
        return NotDifferentiableError(
            f'{type(self.model).__name__} gives no gradients ({line}): '
            "measure instead, with estimator='alone'"
        )
