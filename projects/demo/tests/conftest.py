import importlib
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1]


@pytest.fixture
def demo(monkeypatch):
    """Import modules of the demo as its script does."""
    monkeypatch.syspath_prepend(str(DEMO))
    yield importlib.import_module
    for name in list(sys.modules):
        if name.split('.')[0] in ('demo_parts', 'run_demo'):
            del sys.modules[name]
