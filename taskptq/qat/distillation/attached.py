"""Attach distillation to the loss of a model in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from taskptq.qat.distillation.config import DistillationConfig
from taskptq.qat.distillation.queries import QueryTerm
from taskptq.qat.distillation.views import Views

__all__ = ['Distillation']


class Distillation:
    """Distillation terms in the loss of one model.

    The teacher is not a sub-module of the student, so that no optimizer,
    checkpoint or ``train()`` reaches it.

    Args:
        student: Prepared model in training.
        teacher: Prepared float model.
        config: Settings.

    Raises:
        ValueError: If they cannot be compared as the settings say.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        config: DistillationConfig,
    ) -> None:
        self.student = student
        self.queries: QueryTerm | None = None
        self.views: Views | None = None
        if config.compares_queries:
            self.queries = QueryTerm(student, teacher, config=config)
        if config.views:
            self.views = Views(student, teacher, configs=config.views)
        self._own_loss: Callable[..., Any] | None = None
        self._replaced = ''

    @property
    def wants_batches(self) -> bool:
        """Whether :meth:`prepare` has to see calibration images."""
        return self.views is not None and self.views.wants_batches

    def prepare(self, batches: Sequence[Any]) -> None:
        """Measure the teacher before the first step.

        Args:
            batches: Collated calibration batches.
        """
        if self.views is not None:
            self.views.prepare(batches)

    def attach(self) -> None:
        """Make the student's loss include the distillation."""
        # On the instance, so that the host's class stays untouched.
        if hasattr(self.student, 'loss'):
            self._replaced = 'loss'
            self._own_loss = self.student.loss
            self.student.loss = self.loss
            return
        self._replaced = 'forward'
        self._own_loss = self.student.forward
        self.student.forward = self._forward  # type: ignore[method-assign]

    def detach(self) -> None:
        """Restore the student's own loss."""
        vars(self.student).pop(self._replaced, None)
        self._own_loss = None

    def _forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[Any] | None = None,
        mode: str = 'tensor',
        **kwargs: Any,
    ) -> Any:
        """Stand for the forward of a model whose loss is no method."""
        assert self._own_loss is not None
        kwargs['mode'] = mode
        if mode != 'loss' or data_samples is None:
            return self._own_loss(inputs, data_samples, **kwargs)
        return self.loss(inputs, data_samples, **kwargs)

    def loss(
        self, inputs: Tensor, samples: Sequence[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Return the model's losses and the weighted distillation terms.

        Args:
            inputs: Preprocessed images for student and teacher.
            samples: Their data samples.
            kwargs: Further arguments of the model's ``loss``.
        """
        assert self._own_loss is not None
        with ExitStack() as stack:
            queries = records = None
            if self.queries is not None:
                queries = stack.enter_context(self.queries.recording())
            if self.views is not None:
                records = stack.enter_context(self.views.recording())
            losses = dict(self._own_loss(inputs, samples, **kwargs))
        if self.queries is not None and queries is not None:
            losses |= self.queries.losses(queries, inputs, samples)
        if self.views is not None and records is not None:
            losses |= self.views.losses(records, inputs, samples)
        return losses
