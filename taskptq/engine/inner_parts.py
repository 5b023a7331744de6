"""Network parts of models that hand their images to a detector inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskptq.engine.network_parts import NetworkParts, parts_of
from taskptq.engine.raw_outputs import Part, Run
from taskptq.registry import NETWORK_PARTS

__all__ = ['SemiSupervisedParts']


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.semi_base.SemiBaseDetector'
)
class SemiSupervisedParts(NetworkParts):
    """Teacher and student: the parts of the one that predicts."""

    def _inner(self) -> NetworkParts:
        from mmdet.models.detectors import SemiBaseDetector

        self.refuse_overridden(SemiBaseDetector, 'predict')
        chosen = self.model.semi_test_cfg.get('predict_on', 'teacher')
        teaches = chosen == 'teacher'
        return parts_of(self.model.teacher if teaches else self.model.student)

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the parts of the inner detector."""
        return self._inner().parts(data, dynamic=dynamic)

    def install(self, runs: Mapping[str, Run]) -> None:
        """Install them in it."""
        self._inner().install(runs)

    def decoding(self) -> dict[str, Any] | None:
        """Return the decoding of the inner detector."""
        return self._inner().decoding()
