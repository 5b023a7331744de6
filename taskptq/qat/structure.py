"""What a training's model consists of, and its way through the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from taskptq.engine.quantization_report import (
    structure_of,
    swap_summary,
    write_swap_report,
)
from taskptq.modules.base import Scheme
from taskptq.prepare import Decisions, QConfig, SwapReport
from taskptq.prepare.products import ProductReport
from taskptq.qat.grids import (
    enter_stage,
    leave_float,
    report_stage,
    schemes_of,
)
from taskptq.qat.model import prepare_training
from taskptq.qat.stages import Stages

__all__ = ['TrainedStructure']


class TrainedStructure:
    """The quantizers of one model in training.

    Args:
        stages: The stages.
        work_dir: Folder of the run, for the swap report.

    Attributes:
        at: Index of the stage that the model is in.
        report: What happened to each layer.
        record: The same, as files hold it.
        prepared: Whether the model is swapped.
    """

    def __init__(self, stages: Stages, *, work_dir: str | Path) -> None:
        self.stages = stages
        self.work_dir = Path(work_dir)
        self.at = 0
        self.report = SwapReport()
        self.record: dict[str, Any] = {}
        self.prepared = False
        self._planned = SwapReport()
        self._schemes: list[dict[str, Scheme]] = []

    def prepare(
        self,
        model: nn.Module,
        qconfig: QConfig,
        *,
        at: int = 0,
        batch: Any = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Fold and swap a float model, and enter a stage.

        Args:
            model: Float model, changed in place.
            qconfig: Recipe of the last stage.
            at: Index of the stage to enter.
            batch: See ``prepare_training``.
            decisions: See ``prepare_training``.

        Raises:
            ValueError: If a stage finds none of its parts; see also
                ``prepare_training``.
        """
        several = len(self.stages) > 1
        for index, stage in enumerate(self.stages.items):
            name = f'stages[{index}]' if several else self._name()
            stage.check(model, where=name)
        if several:
            model.eval()
            self._schemes = [
                schemes_of(model, stage.qconfig or qconfig)
                for stage in self.stages.items
            ]
        self._planned = prepare_training(
            model, qconfig, batch=batch, decisions=decisions
        )
        self.prepared = True
        self.enter(model, at, before=len(self.stages) - 1)

    def _name(self) -> str:
        return f'stage={self.stages.number}'

    def enter(
        self, model: nn.Module, at: int, *, before: int | None = None
    ) -> None:
        """Give the model the quantizers of a stage.

        Args:
            model: Prepared model.
            at: Index of the stage.
            before: Index of the stage that the model is in; None is ``at``
                of this object.
        """
        before = self.at if before is None else before
        stage = self.stages.items[at]
        if self._schemes:
            enter_stage(
                model,
                stage,
                schemes=self._schemes[at],
                before=self._schemes[before],
            )
        else:
            leave_float(model, stage)
        self.at = at
        self.keep(
            report_stage(
                model, self._planned, stage, title=self.stages.title(at)
            )
        )
        self.work_dir.mkdir(parents=True, exist_ok=True)
        write_swap_report(self.report, self.work_dir)

    def keep(self, report: SwapReport) -> None:
        """Keep a report for the files of this training."""
        self.report = report
        self.record = structure_of(report)

    def summary(self) -> dict[str, Any]:
        """Return what the results say of the swap."""
        return swap_summary(self.report)

    def recall_products(self, record: Any) -> None:
        """Restore the products traced at the start of the training."""
        if 'products' in record:
            products = ProductReport.from_dict(record['products'])
            self.report.add_products(products)
            self.keep(self.report)
