"""Fixtures that the tests of this project share."""

import sys
from pathlib import Path

import pytest
import torch
from quick_runner import quick_runner  # noqa: F401 - a fixture

PROJECT = Path(__file__).resolve().parents[1]
# So that the tests run from a source tree, without installing the project.
sys.path.insert(0, str(PROJECT))
sys.path.insert(0, str(PROJECT / 'tests'))


@pytest.fixture(scope='session')
def repo_root():
    """The repository's top level."""
    return PROJECT.parents[1]


@pytest.fixture(autouse=True)
def host_scope():
    """Work in mmseg's scope, and restore the one from before."""
    pytest.importorskip('mmseg')
    from mmengine.registry import DefaultScope, init_default_scope

    torch.manual_seed(0)
    torch.set_num_threads(1)
    before = DefaultScope.get_current_instance()
    init_default_scope('mmseg')
    yield
    if before is not None:
        init_default_scope(before.scope_name)
