"""A hook that puts an evaluation under noise, by names in a config."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from taskptq.engine.datasets import leaf_datasets, read_sample
from taskptq.engine.ptq_hook import unwrap
from taskptq.registry import HOOKS
from taskptq.robustness.names import Noise, parse_noises
from taskptq.robustness.pipeline import NoisyPipeline
from taskptq.robustness.switches import model_noise

__all__ = ['NoiseHook']

# Images that are read in search of one that the noises change.
PROBED = 16


@HOOKS.register_module()
class NoiseHook(Hook):
    """Tests a model under noise; training and calibration stay clean.

    ``custom_hooks = [dict(type='taskptq.NoiseHook',
    noises=['resize=opencv-nearest', 'ceil_mode'])]`` after PTQHook.

    Args:
        noises: Names of noises, which act together.
        seed: Seed of random noises.

    Raises:
        ValueError: If a noise is unknown; or, in the test, if it changes
            nothing.
    """

    priority = 'VERY_LOW'

    def __init__(self, *, noises: Sequence[str], seed: int = 0) -> None:
        if not noises:
            raise ValueError('noises is empty: name at least one noise')
        self.noises = parse_noises('+'.join(noises))
        self.seed = seed
        self._stack = ExitStack()
        self._counts: Any = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Switch the noises on; the model is quantized by now."""
        images = [noise for noise in self.noises if not noise.on_model]
        if images:
            for leaf in leaf_datasets(runner.test_dataloader.dataset):
                self._replace_pipeline(leaf, images)
        self._counts = self._stack.enter_context(
            model_noise(unwrap(runner.model), self.noises)
        )

    def _replace_pipeline(self, leaf: Any, noises: Sequence[Noise]) -> None:
        before = leaf.pipeline
        noisy = NoisyPipeline(before.transforms, noises=noises, seed=self.seed)
        self._stack.callback(setattr, leaf, 'pipeline', before)
        leaf.pipeline = noisy
        for index in range(min(PROBED, len(leaf))):
            read_sample(leaf, index)
            if noisy.changed:
                return
        reasons = '; '.join(sorted(noisy.reasons)) or 'no pixel changes'
        self._stack.close()
        names = ', '.join(noise.name for noise in noises)
        raise ValueError(f'{names} changes nothing: {reasons}')

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Switch the noises off.

        Raises:
            ValueError: If a noise of the model changed nothing.
        """
        self._stack.close()
        lacking = self._counts.lacking()
        if lacking:
            raise ValueError(
                '; '.join(
                    f'{kind} changes nothing: {reason}'
                    for kind, reason in lacking.items()
                )
            )
