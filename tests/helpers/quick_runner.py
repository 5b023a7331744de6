"""Runners without the work that only their log needs: most of their time."""

import functools
import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


def unformatted(text: str, **options: object) -> tuple[str, bool]:
    """Leave a config's text as mmengine composed it: valid, long lines."""
    del options
    return text, False


@pytest.fixture(scope='session', autouse=True)
def quick_runner() -> Iterator[None]:
    """Shorten what every run of mmengine's Runner repeats.

    It lays out its config four times with yapf and asks the compilers for
    their versions, each data set collects garbage among all objects that the
    tests have imported, and a base config of a host is looked up in a hundred
    files of its models.
    """
    gc.collect()
    gc.freeze()
    try:
        from mmengine.config import utils
        from mmengine.dataset import base_dataset
        from mmengine.runner import runner
        from yapf.yapflib import yapf_api
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', unformatted)
        collect_env = functools.cache(runner.collect_env)
        patch.setattr(runner, 'collect_env', lambda: dict(collect_env()))
        patch.setattr(base_dataset, 'gc', SimpleNamespace(collect=int))
        # Only read: each look-up returns the entry of one config.
        patch.setattr(utils, 'load', functools.cache(utils.load))
        yield
