"""Packages that only some commands need: the runtimes of exported files."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskptq.export.errors import OnnxFileError

__all__ = ['runtime_package']

# Optional package -> extra of taskptq that brings it.
EXTRAS = {
    'onnx': 'onnx',
    'onnxruntime': 'onnx',
    'onnxscript': 'onnx',
    'openvino': 'openvino',
}
# What OpenVINO imports, where it is installed, to tell its makers of it.
REPORTER = 'openvino_telemetry'


def runtime_package(name: str) -> Any:
    """Import ``onnx``, ``onnxruntime`` or another optional package.

    No package reports the import to its makers.

    Raises:
        OnnxFileError: If it is not installed.
    """
    try:
        with without_reports():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != name:
            raise
        what = f"'taskptq[{EXTRAS[name]}]'" if name in EXTRAS else name
        raise OnnxFileError(
            f'this needs {name}, which is not installed: pip install {what}'
        ) from error


@contextmanager
def without_reports() -> Iterator[None]:
    """Let OpenVINO be imported as if its telemetry were not installed.

    It forks the process from a thread to send its message. A fork copies
    locks that other threads hold, and the threads of the runtimes are not
    made for it.
    """
    if REPORTER in sys.modules:
        yield
        return
    sys.modules[REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[REPORTER]
