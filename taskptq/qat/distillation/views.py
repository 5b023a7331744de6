"""All views of a training: one pass of the teacher serves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.builder import build_adapter
from taskptq.qat.distillation.scene import BOX_HEADS, Scene
from taskptq.qat.distillation.taps import Tap, recording
from taskptq.qat.distillation.view import DistillationView
from taskptq.qat.distillation.view_config import ViewConfig

__all__ = ['Views', 'preprocessed']


class Views:
    """The views of one training.

    Args:
        student: Prepared model in training.
        teacher: Prepared float model.
        configs: Settings of the views.

    Raises:
        ValueError: See ``DistillationView``.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        configs: Sequence[ViewConfig],
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.adapter = build_adapter(teacher)
        self.views = [
            DistillationView(
                student, teacher, config=config, adapter=self.adapter
            )
            for config in configs
        ]

    @property
    def wants_batches(self) -> bool:
        """Whether :meth:`prepare` has to see calibration images."""
        return any(view.wants_batches for view in self.views)

    @torch.no_grad()
    def prepare(self, batches: Sequence[Any]) -> None:
        """Let losses measure the teacher on calibration images.

        Args:
            batches: Collated batches.
        """
        for batch in batches:
            with recording(self._taps(self.teacher)) as records:
                self.adapter.forward_heads(self.teacher, batch)
            for view in self.views:
                if view.wants_batches:
                    view.prepare(records)

    def recording(self) -> AbstractContextManager[dict[str, list[Any]]]:
        """Record what :meth:`losses` needs while the student runs."""
        return recording(self._taps(self.student))

    def losses(
        self,
        records: Mapping[str, list[Any]],
        inputs: Tensor,
        samples: Sequence[Any],
    ) -> dict[str, Tensor]:
        """Return the weighted loss of each view, by its name in logs.

        Args:
            records: What was recorded of the student.
            inputs: Preprocessed images.
            samples: Their data samples.
        """
        data = {'inputs': inputs, 'data_samples': samples}
        with (
            torch.no_grad(),
            preprocessed(self.teacher),
            recording(self._taps(self.teacher)) as other,
        ):
            heads = self.adapter.forward_heads(self.teacher, data)
        scene = Scene(
            inputs=inputs,
            samples=samples,
            student=self.student,
            teacher=self.teacher,
            own=records,
            other=other,
            heads=heads,
            adapter=self.adapter,
        )
        found: dict[str, Tensor] = {}
        for view in self.views:
            name = view.name
            while name in found:
                name += '_more'
            found[name] = view.value(scene)
        return found

    def _taps(self, model: nn.Module) -> dict[str, Tap]:
        """Return the places of all views, and heads that propose boxes."""
        heads = {
            name: Tap(module=getattr(model, name))
            for name in BOX_HEADS
            if isinstance(getattr(model, name, None), nn.Module)
        }
        return {
            **heads,
            **{
                name: tap
                for view in self.views
                for name, tap in view.taps_of(model).items()
            },
        }


@contextmanager
def preprocessed(model: nn.Module) -> Iterator[None]:
    """Let a model take batches that are preprocessed already.

    Args:
        model: Model with a ``data_preprocessor``; others are left alone.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        yield
        return
    preprocessor.forward = lambda data, training=False: data
    try:
        yield
    finally:
        vars(preprocessor).pop('forward')
