"""Fixtures that the tests of this project share."""

import sys
from pathlib import Path

import pytest
import torch
from quick_runner import quick_runner  # noqa: F401 - a fixture

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
# So that the tests run from a source tree, without installing the project.
sys.path.insert(0, str(PROJECT))
# And find drawn_roads, which they share.
sys.path.insert(0, str(PROJECT / 'tests'))


def pytest_collection_modifyitems(items):
    """Skip tests of data sets that are not there, with the reason."""
    for item in items:
        for marker in item.iter_markers('data'):
            for name in marker.args:
                if not (ROOT / 'data' / name).is_dir():
                    item.add_marker(
                        pytest.mark.skip(
                            reason=f'needs data/{name}; link the folder that '
                            'holds it with `make data-link DIR=...`'
                        )
                    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def host_scope():
    """Work in mmdet's scope, and restore the one from before."""
    pytest.importorskip('mmdet')
    from mmengine.registry import DefaultScope, init_default_scope

    before = DefaultScope.get_current_instance()
    init_default_scope('mmdet')
    yield
    if before is not None:
        init_default_scope(before.scope_name)
