"""How the files of an export are written, beyond what the config says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ['FileChoices']


@dataclass(frozen=True, kw_only=True)
class FileChoices:
    """Choices of whoever exports; see ``taskptq.apis.export_onnx``.

    Args:
        gate_limit: Least precision of integer gates, in dB; None is 24.
        exporter: ``torchscript`` or ``dynamo``.
        end_to_end: Whether boxes are decoded inside of the file.
    """

    gate_limit: float | None = None
    exporter: str = 'torchscript'
    end_to_end: bool = False

    def of_graph(self) -> dict[str, Any]:
        """Return the choices that each graph is written by."""
        found: dict[str, Any] = {'exporter': self.exporter}
        if self.gate_limit is not None:
            found['gate_limit'] = self.gate_limit
        return found
