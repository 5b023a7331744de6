"""Train the roundings and scales of one unit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from taskptq.core import dropping, quantizing
from taskptq.core.distributed import is_distributed, mean_over_ranks
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.losses import Outputs, ReconContext, ReconLoss
from taskptq.reconstruction.rounding.attached import Learned, learning
from taskptq.reconstruction.rounding.rate_term import RateTerm

logger = logging.getLogger('taskptq')

# Steps between checks of the loss and the roundings (each costs a sync).
CHECK_EVERY = 25
# Field -> its name in state files and results, where older files have it too.
STORED_NAMES = {'settled': 'decided', 'flipped': 'turned'}


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """One draw: a closure that runs the unit, the target and the images."""

    run: Callable[[], Outputs]
    target: Outputs
    image_ids: tuple[int, ...] = ()


@dataclass(kw_only=True)
class UnitResult:
    """Result of training one unit.

    Args:
        name: Name of the unit.
        steps: Optimizer steps.
        loss_start: Loss of the first step.
        loss_end: Mean loss of the last steps.
        settled: Share of roundings settled before they were made hard.
        flipped: Share of weights that ended on another code than they started
            on, which is the nearest one or that of an earlier phase.
        num_weights: Number of roundings.
        set_loss_start: Mean loss of all calibration batches, quantized and
            without drop, before the steps (``keep_better``).
        set_loss_end: The same loss after the steps.
        taken_back: Whether the steps were undone.
        fault: Why no step could be made, '' if one could: the unit is rounded
            as before.
        seconds: Wall time.
    """

    name: str
    steps: int = 0
    loss_start: float = math.nan
    loss_end: float = math.nan
    settled: float = math.nan
    flipped: float = math.nan
    num_weights: int = 0
    set_loss_start: float | None = None
    set_loss_end: float | None = None
    taken_back: bool = False
    fault: str = ''
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, by their stored names."""
        return stored_names(vars(self))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> UnitResult:
        """Read what :meth:`to_dict` returned."""
        names = {STORED_NAMES.get(f.name, f.name): f.name for f in fields(cls)}
        return cls(**{names[name]: value for name, value in stored.items()})


def stored_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields as in state files and results.

    >>> stored_names({'steps': 400, 'settled': 0.99})
    {'steps': 400, 'decided': 0.99}
    """
    return {STORED_NAMES.get(k, k): value for k, value in values.items()}


def train_unit(
    unit: Unit,
    draw: Callable[[], Minibatch],
    config: ReconstructionConfig,
    *,
    loss: ReconLoss,
    adapter: Any = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_trained: Callable[[Unit], None] | None = None,
) -> UnitResult:
    """Train one unit; its layers keep the hard-rounded weights.

    Args:
        unit: The unit; its counterparts are calibrated.
        draw: Returns a minibatch.
        config: Settings.
        loss: Reconstruction loss.
        adapter: Passed to the loss.
        on_step: Called after each step with its number and loss.
        on_trained: Called with the unit after its last step, while its
            roundings are still soft.
    """
    result = UnitResult(name=unit.name)
    with learning(unit, config) as learned:
        result.num_weights = sum(r.alpha.numel() for r in learned.roundings)
        if learned.parameters():
            trainer = _Trainer(unit, learned, config, loss, adapter)
            if not trainer.is_good_enough(draw(), result):
                trainer.fit(draw, result, on_step)
                if result.fault:
                    return result
                result.settled = learned.settled()
                result.flipped = learned.flipped()
                if on_trained is not None:
                    on_trained(unit)
    return result


class _Trainer:
    """The optimization loop of one unit."""

    def __init__(
        self,
        unit: Unit,
        learned: Learned,
        config: ReconstructionConfig,
        loss: ReconLoss,
        adapter: Any,
    ) -> None:
        self.unit = unit
        self.learned = learned
        self.config = config
        self.loss = loss
        self.adapter = adapter
        self.penalty_weight: Tensor | None = None
        self.recent: list[Tensor] = []
        self.fault = ''
        self.best = math.inf
        self.best_step = 0
        self.rate = RateTerm(learned.coded) if learned.coded else None
        self.optimizer = self._optimizer()
        self.base_lrs = [g['lr'] for g in self.optimizer.param_groups]

    def _optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        if self.learned.roundings:
            alphas = [r.alpha for r in self.learned.roundings]
            groups.append({'params': alphas, 'lr': self.config.weight_lr})
        for scale, magnitude in zip(
            self.learned.scales, self.learned.magnitudes, strict=True
        ):
            # Adam's steps have about the size of lr whatever the gradient,
            # so a relative lr suits scales of any magnitude
            lr = self.config.scale_lr * magnitude
            groups.append({'params': [scale], 'lr': lr})
        return torch.optim.Adam(groups, fused=True)

    @torch.no_grad()
    def is_good_enough(self, batch: Minibatch, result: UnitResult) -> bool:
        """Whether rounding to nearest leaves nothing to gain."""
        if self.config.skip_below <= 0:
            return False
        with quantizing(self.unit.module):
            value = mean_over_ranks(self._loss_of(0, batch))
        result.loss_start = result.loss_end = float(value)
        # Untrained roundings become nearest when they are made hard.
        return bool(value < self.config.skip_below)

    def fit(
        self,
        draw: Callable[[], Minibatch],
        result: UnitResult,
        on_step: Callable[[int, Tensor], None] | None,
    ) -> None:
        """Run the steps and fill in the result."""
        module = self.unit.module
        first: Tensor | None = None
        with (
            quantizing(module),
            dropping(module, drop_prob=self.config.drop_prob),
        ):
            for step in range(self.config.steps):
                value = self._step(step, draw())
                if self.fault:
                    self._leave(result)
                    return
                first = value if first is None else first
                result.steps = step + 1
                if on_step is not None:
                    on_step(step, value)
                if self._stop(step, value):
                    break
        assert first is not None
        if self.rate is not None:
            self.rate.fit()
        result.loss_start = float(first)
        result.loss_end = float(torch.stack(self.recent).mean())

    def _step(self, step: int, batch: Minibatch) -> Tensor:
        self._set_lrs(step)
        value = self._loss_of(step, batch)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        self._visit_idle()
        self._average_gradients()
        if step == 0:
            self.fault = self._find_fault(value.detach(), batch)
        if self.fault:
            return value.detach()
        self._add_penalty(step, value.detach())
        if self.rate is not None:
            self.rate.add_gradient(step)
        self.optimizer.step()
        return value.detach()

    def _find_fault(self, value: Tensor, batch: Minibatch) -> str:
        """Return why the first step cannot be made, '' if it can.

        Code that clamps an overflow, such as that of ``exp``, has finite
        outputs but gradients that are not. If only the loss is not finite,
        the unit is not to blame.
        """
        if bool(mean_over_ranks(value).isfinite()):
            gradients = [p.grad for p in self.learned.parameters()]
            finite = _are_finite([g for g in gradients if g is not None])
            return '' if finite else 'the gradients of its outputs'
        with torch.no_grad():
            found = {'float': batch.target, 'quantized': batch.run()}
        for kind, outputs in found.items():
            finite = _are_finite(_tensors(outputs))
            flag = value.new_tensor(float(finite))
            if bool(mean_over_ranks(flag) < 1):
                return f'its {kind} outputs'
        return ''

    def _leave(self, result: UnitResult) -> None:
        """Record and say that the unit stays as it was."""
        result.fault = f'{self.fault} are not finite'
        logger.warning(
            '%s is not reconstructed, as %s: its roundings and ranges stay '
            'as they were',
            self.unit.name or 'the network',
            result.fault,
        )

    @torch.no_grad()
    def _visit_idle(self) -> None:
        """Run the roundings of layers that this minibatch didn't call.

        Their penalty still counts, and must be the same on every rank.
        """
        for rounding in self.learned.roundings:
            if rounding.alpha.grad is None:
                rounding()
                rounding.alpha.grad = torch.zeros_like(rounding.alpha)

    def _loss_of(self, step: int, batch: Minibatch) -> Tensor:
        context = ReconContext(
            unit=self.unit.name,
            step=step,
            num_steps=self.config.steps,
            image_ids=batch.image_ids,
            adapter=self.adapter,
            **_heads(self.unit, batch),
        )
        with self._autocast():
            quant_out = batch.run()
            if context.heads_float and isinstance(quant_out, dict):
                context.heads_quant.update(quant_out)  # type: ignore[attr-defined]
            return self.loss(quant_out, batch.target, context)

    def _add_penalty(self, step: int, value: Tensor) -> None:
        """Pull the roundings to 0 or 1 (AdaRound, Eq. 24).

        The exponent falls linearly from ``beta_start`` to ``beta_end``,
        rounded to even numbers.
        """
        config = self.config
        start = config.warmup * config.steps
        if step < start or config.rounds_hard or not self.learned.roundings:
            return
        if self.penalty_weight is None:
            recent = torch.stack([*self.recent, value]).mean()
            count = sum(r.alpha.numel() for r in self.learned.roundings)
            self.penalty_weight = (
                config.rounding_weight / count * mean_over_ranks(recent)
            )
        progress = (step - start) / max(1.0, config.steps - start)
        beta = config.beta_end + (config.beta_start - config.beta_end) * (
            1 - progress
        )
        for rounding in self.learned.roundings:
            rounding.add_penalty_gradient(
                weight=self.penalty_weight, beta=max(2, 2 * round(beta / 2))
            )

    def _set_lrs(self, step: int) -> None:
        progress = step / self.config.steps
        groups = self.optimizer.param_groups
        for index, (group, lr) in enumerate(
            zip(groups, self.base_lrs, strict=True)
        ):
            if index == 0 and self.learned.roundings:
                # constant for the first half of training
                group['lr'] = lr * _cosine(max(0.0, 2 * progress - 1))
            else:
                group['lr'] = lr * _cosine(progress)

    def _stop(self, step: int, value: Tensor) -> bool:
        self.recent = [*self.recent[-(CHECK_EVERY - 1) :], value]
        is_last = step + 1 == self.config.steps
        if (step + 1) % CHECK_EVERY and not is_last:
            return False
        level = mean_over_ranks(torch.stack(self.recent).mean())
        if not bool(level.isfinite()):
            raise ValueError(
                f'{self.unit.name or "the network"}: the reconstruction loss '
                f'is {float(level)} at step {step}: lower '
                'reconstruction.weight_lr or scale_lr, or check the data'
            )
        if self.config.patience is None:
            return False
        if float(level) < 0.99 * self.best:
            self.best, self.best_step = float(level), step
        settled = self.learned.settled()
        return step - self.best_step >= self.config.patience and (
            math.isnan(settled) or settled >= 0.999
        )

    def _average_gradients(self) -> None:
        if not is_distributed():
            return
        gradients = [
            p.grad if p.grad is not None else torch.zeros_like(p)
            for p in self.learned.parameters()
        ]
        flat = torch.cat([g.flatten() for g in gradients])
        flat = mean_over_ranks(flat)
        start = 0
        for parameter in self.learned.parameters():
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter)
            start = end

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast is None:
            return nullcontext()
        device = self.learned.parameters()[0].device.type
        return torch.autocast(device, dtype=torch.bfloat16)


def _cosine(progress: float) -> float:
    """Return the annealing factor, from 1 at 0 down to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _heads(unit: Unit, batch: Minibatch) -> dict[str, Any]:
    """Return named heads for the context if the unit is the network."""
    if unit.name or not isinstance(batch.target, dict):
        return {}
    return {'heads_float': batch.target, 'heads_quant': {}}


def _tensors(outputs: Outputs) -> list[Tensor]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
