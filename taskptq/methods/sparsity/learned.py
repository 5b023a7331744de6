"""Learn how the rate is shared out, on the outputs of the whole model.

FCPTS (Gong et al., AAAI 2024) learns one threshold for each layer together
with the weights, under a penalty on the global rate. Here a cut through
relative thresholds keeps the rate exact, and only kept weights move; removed
ones come back as they were when a threshold falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.batches import BatchParts
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import FreeWeight, quantizing
from taskptq.core.distributed import mean_over_ranks, own_rank
from taskptq.core.progress import Progress
from taskptq.methods.output_error import OutputErrorLoss
from taskptq.methods.sparsity.allocations import norms, scaled_masks
from taskptq.methods.sparsity.bridge import moved_counts, on_budget
from taskptq.methods.sparsity.prunable import Prunable
from taskptq.prepare.sparsity import SparsityConfig
from taskptq.reconstruction.image_variety import channels_last
from taskptq.reconstruction.losses import ReconContext
from taskptq.reconstruction.network import NetworkData

# Weights within this factor of the threshold say what moving it would cost.
WINDOW = 0.3
# Share of the steps before thresholds move: weights first make up for the
# rates of the start, whose gradients are those of a broken model.
WARMUP = 0.2


@dataclass
class LearnedMasks:
    """What learning the thresholds gave.

    Args:
        masks: One for each prunable weight.
        loss_start: Mean loss of the first steps.
        loss_end: Mean loss of the last steps.
        thresholds: Factor on each layer's relative threshold.
        rates: Global rate of each step.
    """

    masks: list[Tensor]
    loss_start: float
    loss_end: float
    thresholds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


class ThresholdWeight(FreeWeight):
    """A free weight of which a mask shows a part; its gradient is of all.

    The gradient of a removed weight says what bringing it back would do.
    """

    def __init__(self, weight: Tensor, *, ch_axis: int = 0) -> None:
        super().__init__(weight, ch_axis=ch_axis)
        self.shown: Tensor | None = None

    def forward(self) -> Tensor:
        """Return the masked weight."""
        out: Tensor = _Shown.apply(  # type: ignore[no-untyped-call]
            self.codes(), self.alpha, self.scale, self.shown
        )
        return out


class _Shown(torch.autograd.Function):
    """Mask a weight; pass the gradient to all of it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, alpha: Tensor, scale: Tensor, mask: Tensor
    ) -> Tensor:
        del alpha
        ctx.save_for_backward(scale)
        return torch.where(mask, weight, torch.zeros_like(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (scale,) = ctx.saved_tensors
        return None, gradients[0] * scale, None, None


def learn_masks(
    model: nn.Module,
    prunable: Sequence[Prunable],
    batches: Sequence[Any],
    config: SparsityConfig,
    *,
    adapter: Any,
    seed: int = 0,
) -> LearnedMasks:
    """Learn relative thresholds and return the masks that they cut.

    The model's own weights stay as they are.

    Args:
        model: Swapped model, not calibrated.
        prunable: Its prunable weights.
        batches: Calibration batches (this rank's share).
        config: ``rate``, ``steps``, ``batch_size`` and learning rates.
        adapter: The model's adapter, whose named outputs are compared.
        seed: Seed of minibatches.

    Raises:
        ValueError: If the outputs cannot be compared or differentiated.
    """
    parts = BatchParts(batches, config.batch_size)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(seed * 1_000_003 + own_rank())
        stack.enter_context(calibration_mode(model))
        stack.enter_context(channels_last(model, enabled=True))
        data = NetworkData(model, parts, adapter)
        search = _Search(prunable, data, config)
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            search.attach()
            stack.enter_context(torch.enable_grad())
            with quantizing(model, activations=False):
                return search.run()
        finally:
            search.detach()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


class _Search:
    """The optimisation loop of :func:`learn_masks`."""

    def __init__(
        self,
        prunable: Sequence[Prunable],
        data: NetworkData,
        config: SparsityConfig,
    ) -> None:
        self.prunable = prunable
        self.data = data
        self.config = config
        self.weights = [
            ThresholdWeight(one.weight, ch_axis=one.ch_axis)
            for one in prunable
        ]
        self.start = torch.stack(norms([one.weight for one in prunable]))
        self.log_tau = nn.Parameter(torch.zeros_like(self.start))
        self.biases: list[nn.Parameter] = []
        self.loss = OutputErrorLoss()

    def attach(self) -> None:
        """Let the layers use the weights in training."""
        for one, weight in zip(self.prunable, self.weights, strict=True):
            one.module.attach_roundings({one.parameter: weight})
            bias = one.module.start_bias(one.parameter)
            if bias is not None:
                self.biases.append(bias)

    def detach(self) -> None:
        """Give the layers their own weights back."""
        for one in self.prunable:
            one.module.drop_roundings()
            one.module.forget_biases()

    def run(self) -> LearnedMasks:
        """Run the steps."""
        steps = self.config.steps
        self._cut()
        self.loss.begin(self.data.probe())
        optimizer = self._optimizer()
        base = [group['lr'] for group in optimizer.param_groups]
        losses: list[float] = []
        rates: list[float] = []
        with Progress('learn rates', total=steps) as shown:
            for step in range(steps):
                rates.append(self._cut())
                losses.append(float(self._backward(step)))
                warm = step >= WARMUP * steps
                factor = max(0.05, 1 - step / steps)
                for group, lr in zip(
                    optimizer.param_groups, base, strict=True
                ):
                    group['lr'] = lr * factor
                if not warm:
                    self.log_tau.grad = None
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                shown.advance()
        self._cut()
        few = max(1, min(10, steps // 4))
        return LearnedMasks(
            masks=[self._mask_of(weight) for weight in self.weights],
            loss_start=sum(losses[:few]) / few,
            loss_end=sum(losses[-few:]) / few,
            thresholds=self.log_tau.detach().exp().tolist(),
            rates=rates,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        alphas = [weight.alpha for weight in self.weights]
        groups: list[dict[str, Any]] = [
            {'params': alphas, 'lr': self.config.weight_lr},
            {'params': [self.log_tau], 'lr': self.config.threshold_lr},
        ]
        for bias in self.biases:
            size = max(float(bias.detach().abs().mean()), 1e-3)
            groups.append({'params': [bias], 'lr': 1e-3 * size})
        return torch.optim.Adam(groups)

    @torch.no_grad()
    def _cut(self) -> float:
        """Set the masks by the current thresholds; return the rate."""
        rate = self.config.rate
        assert rate is not None
        masks = scaled_masks(
            [weight.codes().abs() for weight in self.weights],
            list(self.start * self.log_tau.exp()),
            rate=rate,
        )
        removed = 0
        for weight, mask in zip(self.weights, masks, strict=True):
            weight.shown = mask
            removed += mask.numel() - int(mask.sum())
        return removed / sum(mask.numel() for mask in masks)

    @staticmethod
    def _mask_of(weight: ThresholdWeight) -> Tensor:
        assert weight.shown is not None
        return weight.shown.contiguous()

    def _backward(self, step: int) -> Tensor:
        """Compute the gradients of one minibatch; return its loss."""
        batch = self.data.draw()
        assert isinstance(batch.target, Mapping)
        heads = batch.run()
        assert isinstance(heads, dict)
        context = ReconContext(
            unit='',
            step=step,
            num_steps=self.config.steps,
            image_ids=batch.image_ids,
            heads_float=batch.target,
            heads_quant=heads,
            adapter=self.data.adapter,
        )
        loss = self.loss(heads, batch.target, context)
        loss.backward()
        self._share()
        self.log_tau.grad = self._threshold_gradient()
        for weight in self.weights:
            if weight.alpha.grad is not None:
                weight.alpha.grad.mul_(self._mask_of(weight))
        return mean_over_ranks(loss.detach())

    @torch.no_grad()
    def _share(self) -> None:
        """Average the gradients over ranks."""
        for parameter in [*(w.alpha for w in self.weights), *self.biases]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = mean_over_ranks(parameter.grad)

    @torch.no_grad()
    def _threshold_gradient(self) -> Tensor:
        """Return dL / d log tau at a constant rate.

        A threshold that passes a weight W removes it: the loss changes by
        ``- W dL/dW_hat``, to first order.
        """
        magnitudes = [weight.codes().abs() for weight in self.weights]
        thresholds = self._thresholds(magnitudes)
        moved = moved_counts(magnitudes, thresholds)
        costs = []
        for weight, magnitude, threshold in zip(
            self.weights, magnitudes, thresholds, strict=True
        ):
            near = (magnitude / threshold).log().abs() < WINDOW
            gradient = weight.alpha.grad
            assert gradient is not None
            each = -(gradient * weight.alpha)[near]
            costs.append(each.mean() if each.numel() else each.new_zeros(()))
        return on_budget(moved * torch.stack(costs), moved)

    def _thresholds(self, magnitudes: Sequence[Tensor]) -> Tensor:
        """Return the threshold of each layer at the current cut."""
        scales = self.start * self.log_tau.exp()
        highest = torch.stack(
            [
                torch.where(self._mask_of(w), 0.0, m / scale).max()
                for w, m, scale in zip(
                    self.weights, magnitudes, scales, strict=True
                )
            ]
        )
        tiny = torch.finfo(scales.dtype).tiny
        return (highest.max() * scales).clamp(min=tiny)
