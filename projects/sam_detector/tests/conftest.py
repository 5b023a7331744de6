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

SAM = {
    'type': 'PromptedSAM',
    'size': 'tiny',
    'embed_dim': 16,
    'depth': 2,
    'num_heads': 2,
    'global_blocks': (1,),
    'image_size': 64,
    'window_size': 2,
    'prompt_dim': 16,
    'decoder_heads': 2,
    'decoder_mlp_dim': 16,
    'iou_hidden_dim': 16,
}


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


@pytest.fixture
def sam_config():
    """A SAM of 64x64 pixels with a few thousand weights."""
    return dict(SAM)


@pytest.fixture(autouse=True)
def host_scope():
    """Work in mmdet's scope, and restore the one from before."""
    pytest.importorskip('mmdet')
    pytest.importorskip('segment_anything')
    from mmengine.registry import DefaultScope, init_default_scope

    before = DefaultScope.get_current_instance()
    init_default_scope('mmdet')
    yield
    if before is not None:
        init_default_scope(before.scope_name)
