"""Quantized networks as ONNX files whose layers run in integers."""

try:
    import onnx  # noqa: F401
except ImportError as error:
    raise ImportError(
        'ONNX files need the packages onnx and onnxruntime: '
        'pip install "taskptq[onnx]"'
    ) from error

from taskptq.export.onnx.emission import exporting
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.export import export_onnx
from taskptq.export.onnx.report import ExportReport

__all__ = ['ExportReport', 'OnnxExportError', 'export_onnx', 'exporting']
