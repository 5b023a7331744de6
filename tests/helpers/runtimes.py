"""Runtimes of exported files, or the reason to skip."""

from importlib.util import find_spec

import pytest

from taskptq.export.optional import runtime_package


def find_runtime(name):
    """Import a runtime as the code does, or skip the test.

    ``pytest.importorskip`` would let OpenVINO report the import, by a fork of
    the tests' process.
    """
    if find_spec(name) is None:
        pytest.skip(f'needs {name}')
    return runtime_package(name)
