"""What a training learns, and the optimizer that it learns with."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.runner import Runner
from torch import nn

from taskptq.qat.model import (
    Learned,
    frozen_norms,
    keep_valid,
    move_weights,
    start_learning,
)
from taskptq.qat.optimizer import continue_optimization, rebuild_optimization

__all__ = ['Learning']


class Learning:
    """The parameters of quantizers that a run trains.

    Args:
        lr_mult: Learning rate multiplier by kind of parameter, or None.

    Attributes:
        learned: The parameters.
    """

    def __init__(self, lr_mult: Mapping[str, float] | None) -> None:
        self.lr_mult = lr_mult
        self.learned: list[Learned] = []
        self._norms: list[nn.Module] = []

    def start(self, runner: Runner, *, goes_on: bool = False) -> None:
        """Turn the quantizers on and rebuild the optimization with them.

        Args:
            runner: Runner in training; its model is calibrated.
            goes_on: Whether finished epochs count: in a later stage, not
                where the runner restores the optimizer itself.
        """
        before = runner.optim_wrapper
        self.learned = start_learning(runner.model)
        self._norms = frozen_norms(runner.model)
        rebuild_optimization(runner, self.learned, lr_mult=self.lr_mult)
        if goes_on:
            continue_optimization(
                runner,
                before,
                iterations_per_epoch=len(runner.train_loop.dataloader),
            )
        runner.logger.info(
            f'Quantization-aware training: {len(self.learned)} quantizer '
            'parameters train along with the weights.'
        )

    def hold(self) -> None:
        """Undo the effects of ``model.train()`` on quantizers and norms.

        Hosts freeze stages there, including the quantizers inside.
        """
        for item in self.learned:
            item.parameter.requires_grad_(True)
        for norm in self._norms:
            norm.eval()

    def after_step(self, model: nn.Module) -> None:
        """Keep the grids valid, and let pulls move weights.

        Args:
            model: The model in training.
        """
        keep_valid(self.learned)
        move_weights(model)
