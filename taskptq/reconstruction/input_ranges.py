"""Ranges of activations by what their errors do to the model's outputs.

A range of least error weighs all values alike. At a few bits that is wrong
where most values lie within a step of 0: they all are rounded the same way,
and errors that agree add up in the layers behind, while the clipping of a few
large values does not.

To first order an error e of a tensor changes the outputs by J e. For random
signs r and the gradient g of ``sum sqrt(h) r z`` over the outputs z, weighed
by h, ``E[(g . e)^2]`` is the squared change of the outputs (Hutchinson, 1989;
Gauss-Newton as in Martens and Grosse, ICML 2015), for any number of candidate
grids in one pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.batches import BatchParts, batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import AffineQuantizer, dropping, float_only, quantizing
from taskptq.core.distributed import gathered
from taskptq.core.functional import fake_quantize
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.reconstruction.network import NOT_TRAINABLE

__all__ = ['fit_input_ranges', 'input_ranges_tried']

logger = logging.getLogger('taskptq')

# Factors of the step, and codes by which the zero point moves, that are
# tried: first for all tensors, then again for those that hurt.
FIRST = tuple(
    (factor, 0) for factor in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4)
)
AGAIN = tuple(
    (factor, shift) for factor in (0.8, 0.9, 1.0, 1.1) for shift in (-1, 0, 1)
)
# Share of all tensors' losses from which on one is tried again.
LEAST_SHARE = 0.01
# From these bits on, what a range could gain is not worth a pass.
SEARCHED_BELOW = 8
# What sets the ranges, and the images of one graph.
NUM_IMAGES, IMAGES_AT_ONCE = 16, 4
LEAST_SIGNAL = 1e-12

Heads = dict[str, Tensor]


def fit_input_ranges(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    adapter: Any,
    seed: int,
    optional: bool = False,
) -> dict[str, float]:
    """Move each activation's range to where the outputs' error is least.

    The ranges are restored if that error does not fall, with float weights,
    on the images that set them.

    Args:
        model: Swapped and calibrated model; its ranges change.
        batches: Calibration batches of this rank.
        adapter: The model's adapter.
        seed: Seed of the probes.
        optional: Warn if the model has no outputs that can be compared and
            differentiated; without it, errors pass.

    Returns:
        Name of the quantizer -> factor of its step, of those that changed.
    """
    found = _searched(model)
    if not any(gathered(bool(found))):
        return {}
    reason, search = '', None
    try:
        search = _Search(model, found, batches, adapter, seed=seed)
        search.check()
    except NOT_TRAINABLE as error:
        if not optional:
            raise
        reason = ' '.join(str(error).split()) or type(error).__name__
    reasons = [one for one in gathered(reason) if one]
    if reasons or search is None:
        logger.warning('Ranges of activations stay: %s', reasons[0])
        return {}
    return search.run()


@contextmanager
def input_ranges_tried(
    model: nn.Module, batches: Sequence[Any], **settings: Any
) -> Iterator[None]:
    """Run with the ranges of :func:`fit_input_ranges`; then go back.

    Args:
        model: Swapped and calibrated model.
        batches: Calibration batches of this rank.
        **settings: Passed on.
    """
    before = {
        quantizer: (quantizer.scale.detach().clone(), quantizer.zero_point)
        for quantizer in _searched(model).values()
    }
    fit_input_ranges(model, batches, **settings)
    try:
        yield
    finally:
        with torch.no_grad():
            for quantizer, (scale, zero_point) in before.items():
                quantizer.set_scale(scale)
                quantizer.set_zero_point(zero_point)


def _searched(model: nn.Module) -> dict[str, AffineQuantizer]:
    """Return the activations of a few bits, by name."""
    return {
        name: quantizer
        for name, quantizer in quantizers(model)
        if not is_weight_quantizer(name)
        and isinstance(quantizer, AffineQuantizer)
        and quantizer.calibrated
        and quantizer.spec.num_bits < SEARCHED_BELOW
    }


class _Search:
    """The pass with gradients, and what it collects.

    Args:
        model: Swapped and calibrated model.
        found: Quantizers to search.
        batches: Calibration batches.
        adapter: The model's adapter.
        seed: Seed of the probes.
    """

    def __init__(
        self,
        model: nn.Module,
        found: dict[str, AffineQuantizer],
        batches: Sequence[Any],
        adapter: Any,
        *,
        seed: int,
    ) -> None:
        self.model = model
        self.found = found
        self.adapter = adapter
        self.batches = _first_images(batches)
        self.generator = torch.Generator().manual_seed(seed)
        self.began = {
            name: (q.scale.detach().clone(), q.zero_point.clone())
            for name, q in found.items()
        }
        self.tried: tuple[tuple[float, int], ...] = ()
        self.sums: dict[str, Tensor] = {}
        self.rows = 1
        self.targets: list[Heads] = []
        with calibration_mode(model), float_only(model):
            for batch in self.batches:
                heads = adapter.forward_heads(model, batch)
                self.targets.append({k: v.detach() for k, v in heads.items()})
        self.signals = self._signals()

    def check(self) -> None:
        """Run the first batch forward and backward, for nothing.

        Raises:
            ValueError: If no output has a gradient.
        """
        self._collect((), list(self.found), self.batches[:1])

    def run(self) -> dict[str, float]:
        """Search twice; return the factors of the steps that changed."""
        self._share_signals()
        before = self._error()
        losses = self._pass(FIRST, list(self.found))
        total = sum(losses.values())
        worst = [n for n in losses if losses[n] > LEAST_SHARE * total]
        self._pass(AGAIN, worst)
        after = self._error()
        logger.info(
            'ranges of activations: the error of the outputs went from %.4g '
            'to %.4g',
            before,
            after,
        )
        if not after < before:
            self.restore()
        return {
            name: factor
            for name, quantizer in self.found.items()
            if (factor := self._factor(name, quantizer)) != 1.0
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the calibrated ranges."""
        for name, (scale, zero_point) in self.began.items():
            self.found[name].set_scale(scale)
            self.found[name].set_zero_point(zero_point)

    def _factor(self, name: str, quantizer: AffineQuantizer) -> float:
        ratio = quantizer.scale.detach() / self.began[name][0]
        return round(float(ratio.flatten()[0]), 4)

    def _pass(
        self, tried: tuple[tuple[float, int], ...], names: Sequence[str]
    ) -> dict[str, float]:
        """Try ranges in one pass and keep the best; return their losses."""
        self._collect(tried, names, self.batches)
        ranks = gathered(self.sums)
        losses = {}
        for name in names:
            totals = torch.stack([part[name] for part in ranks]).sum(dim=0)
            if not (totals[totals.isfinite()] > 0).any():
                # It never ran, or no output depends on it.
                losses[name] = 0.0
                continue
            losses[name] = float(totals.min())
            self._move(self.found[name], *tried[int(totals.argmin())])
        return losses

    def _collect(
        self,
        tried: tuple[tuple[float, int], ...],
        names: Sequence[str],
        batches: Sequence[Any],
    ) -> None:
        """Sum the squared products of each range over the batches."""
        self.tried = tried
        self.sums = {
            name: torch.zeros(len(tried), dtype=torch.float64)
            for name in names
        }
        with self._tapped():
            for batch, target in zip(batches, self.targets, strict=False):
                self.rows = batch_length(batch) or 1
                heads = self.adapter.forward_heads(self.model, batch)
                self._probe(heads, self._weights(target)).backward()

    @torch.no_grad()
    def _move(
        self, quantizer: AffineQuantizer, factor: float, shift: int
    ) -> None:
        quantizer.set_scale(quantizer.scale.detach() * factor)
        if not quantizer.spec.symmetric:
            quantizer.set_zero_point(quantizer.zero_point + shift)

    def _signals(self) -> dict[str, float]:
        """Return the weighted variance of each output, over own images."""
        sums: dict[str, float] = {}
        for heads in self.targets:
            for name, weight in self.adapter.output_weights(heads).items():
                head = heads[name].float()
                full = weight.detach().expand_as(head)
                axis = 1 if head.dim() == 4 else head.dim() - 1
                dims = [d for d in range(head.dim()) if d != axis]
                total = full.sum(dim=dims, keepdim=True)
                mean = (head * full).sum(dim=dims, keepdim=True)
                mean = mean / total.clamp(min=LEAST_SIGNAL)
                own = float(((head - mean).square() * full).sum())
                kind = _kind(name)
                sums[kind] = sums.get(kind, 0.0) + own
        return {k: v for k, v in sums.items() if v > LEAST_SIGNAL}

    def _share_signals(self) -> None:
        """Take the variances over the images of all ranks."""
        parts = gathered(self.signals)
        self.signals = {
            kind: sum(part.get(kind, 0.0) for part in parts)
            for kind in self.signals
        }

    def _weights(self, target: Heads) -> Heads:
        """Return weights by which each kind of output counts the same."""
        return {
            name: weight.detach().clamp(min=0) / self.signals[kind]
            for name, weight in self.adapter.output_weights(target).items()
            if (kind := _kind(name)) in self.signals
        }

    def _probe(self, heads: Heads, weights: Heads) -> Tensor:
        terms = []
        for name, weight in weights.items():
            head = heads[name]
            if not head.requires_grad:
                continue
            signs = torch.randint(2, head.shape, generator=self.generator)
            signs = signs.to(head) * 2 - 1
            terms.append((head * (weight.sqrt() * signs)).sum())
        if not terms:
            raise ValueError(
                'no output of the model has a gradient: leave out '
                'reconstruction.input_ranges'
            )
        return torch.stack(terms).sum()

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Let gradients reach the quantizers, and nothing else."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        with ExitStack() as stack:
            stack.enter_context(calibration_mode(self.model))
            stack.enter_context(float_only(self.model))
            stack.enter_context(torch.enable_grad())
            for parameter, needed in flags:
                stack.callback(parameter.requires_grad_, needed)
                parameter.requires_grad_(False)
            for name in self.sums:
                quantizer = self.found[name]
                handle = quantizer.register_forward_hook(self._tap(name))
                stack.callback(handle.remove)
            yield

    def _tap(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            del module, args
            value = output.detach()
            # Another tensor: its gradient is that of this reader alone.
            tapped = (
                output.view_as(output)
                if output.requires_grad
                else value.requires_grad_() * 1
            )
            tapped.register_hook(lambda g: self._add(name, value.detach(), g))
            return tapped

        return hook

    @torch.no_grad()
    def _add(self, name: str, value: Tensor, gradient: Tensor) -> None:
        """Add the squared products of one call."""
        grid = self.found[name].parameters_of_grid()
        step, zero = grid.pop('scale').detach(), grid.pop('zero_point')
        ends = grid['quant_min'], grid['quant_max']
        gradient = gradient.float()
        rows = self.rows if len(value) % self.rows == 0 else 1
        fixed = self.found[name].spec.symmetric
        for index, (factor, shift) in enumerate(self.tried):
            if fixed and shift:
                self.sums[name][index] = torch.inf
                continue
            rounded = fake_quantize(
                value,
                scale=step * factor,
                zero_point=(zero + shift).clamp(*ends),
                **grid,
            )
            dots = ((rounded - value) * gradient).reshape(rows, -1).sum(dim=1)
            self.sums[name][index] += float(dots.double().square().sum())

    def _error(self) -> float:
        """Return the outputs' error with float weights, over all ranks."""
        total = 0.0
        with (
            calibration_mode(self.model),
            quantizing(self.model, weights=False),
            dropping(self.model, drop_prob=0.0),
        ):
            for batch, target in zip(self.batches, self.targets, strict=True):
                heads = self.adapter.forward_heads(self.model, batch)
                for name, weight in self._weights(target).items():
                    error = (heads[name] - target[name]).float().square()
                    total += float((error * weight).sum())
        return float(sum(gathered(total)))


def _first_images(batches: Sequence[Any]) -> list[Any]:
    """Return the first images, in parts where batches can be cut."""
    chosen: list[Any] = []
    count = 0
    for number in range(len(batches)):
        batch = batches[number]
        length = batch_length(batch)
        parts = BatchParts([batch], IMAGES_AT_ONCE) if length else [batch]
        chosen += parts
        count += length or 1
        if count >= NUM_IMAGES:
            break
    return chosen


def _kind(name: str) -> str:
    """Return the kind of an output: levels share one."""
    return name.partition('.')[0]
