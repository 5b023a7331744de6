"""Errors of the export to ONNX."""

from __future__ import annotations


class OnnxExportError(ValueError):
    """A model cannot be exported, or its file does not hold what it should.

    The message is one sentence that names the layer and the way out.
    """
