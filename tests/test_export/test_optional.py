"""Imports of optional packages."""

import subprocess
import sys

import pytest
from runtimes import find_runtime

from taskptq.export import optional
from taskptq.export.errors import OnnxFileError
from taskptq.export.optional import REPORTER, runtime_package

ASKING = f"""
try:
    import {REPORTER}
    told = True
except ImportError:
    told = False
"""
ALONE = f"""
import os, sys, threading
os.fork = None
from taskptq.export.optional import runtime_package
runtime_package('openvino')
assert {REPORTER!r} not in sys.modules
assert threading.active_count() == 1, threading.enumerate()
"""


def test_missing_packages():
    with pytest.raises(OnnxFileError, match='pip install no_such_package'):
        runtime_package('no_such_package')


def test_a_missing_runtime_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    monkeypatch.setattr(optional.importlib, 'import_module', missing)
    with pytest.raises(OnnxFileError, match=r'taskptq\[onnx\]'):
        runtime_package('onnxruntime')


def test_a_package_that_lacks_another_says_so(tmp_path, monkeypatch):
    (tmp_path / 'lacking_runtime.py').write_text('import no_such_package')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match='no_such_package'):
        runtime_package('lacking_runtime')


def test_an_import_is_reported_to_nobody(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, REPORTER, raising=False)
    (tmp_path / 'asking_runtime.py').write_text(ASKING)
    (tmp_path / f'{REPORTER}.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not runtime_package('asking_runtime').told
    assert REPORTER not in sys.modules


def test_a_reporter_that_is_loaded_already_stays(tmp_path, monkeypatch):
    loaded = object()
    monkeypatch.setitem(sys.modules, REPORTER, loaded)
    (tmp_path / 'asking_later.py').write_text(ASKING)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert runtime_package('asking_later').told
    assert sys.modules[REPORTER] is loaded


def test_openvino_starts_no_thread_and_no_process():
    find_runtime('openvino')
    found = subprocess.run(
        [sys.executable, '-c', ALONE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
