"""Fixtures and markers that all tests share."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
HOST_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'taskptq')


def pytest_configure(config):
    """Keep each worker on one thread: the workers share the cores."""
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))


def skip_reason(item) -> str | None:
    """Return why a test cannot run here, or None."""
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        return 'needs a CUDA device'
    for marker in item.iter_markers('data'):
        for name in marker.args:
            if not (ROOT / 'data' / name).is_dir():
                return (f'needs data/{name}; link the folder that holds it '
                        'with `make data-link DIR=...`')
    return None


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run, with the reason."""
    for item in items:
        reason = skip_reason(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what the hosts' pipelines use
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The repository's top level."""
    return ROOT


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of the data sets; use it with ``@pytest.mark.data``."""
    return ROOT / 'data'


def all_registries() -> list:
    """Every mmengine registry that exists, and taskptq's own."""
    import mmengine.registry as mmengine_registry
    from mmengine.registry import Registry

    import taskptq.registry as taskptq_registry

    pending = [
        value for module in (mmengine_registry, taskptq_registry)
        for value in vars(module).values() if isinstance(value, Registry)
    ]
    found = {}
    while pending:
        registry = pending.pop()
        if id(registry) not in found:
            found[id(registry)] = registry
            pending.extend(registry.children.values())
    return list(found.values())


def host_modules() -> set[str]:
    """The modules of mm packages and of taskptq that are imported now."""
    return {
        name
        for name in list(sys.modules)
        if name.split('.', maxsplit=1)[0] in HOST_PACKAGES
    }


def restore_registry(registry, entries: dict, test_module: str | None):
    """Undo a test's registrations.

    Args:
        registry: The registry to restore.
        entries: Its names and classes from before the test.
        test_module: None to drop every new name. If the test imported mm
            modules, their registrations must stay (a module registers only at
            its first import), and just the names of classes that were defined
            in this test module go.
    """
    now = registry.module_dict
    for name in list(now):
        is_new = name not in entries
        if is_new and test_module in (None, now[name].__module__):
            del now[name]
    now.update(entries)


@pytest.fixture
def registry_guard(request) -> Iterator[None]:
    """Restore mmengine's global registries after a test that registers."""
    before = {
        id(registry): dict(registry.module_dict)
        for registry in all_registries()
    }
    modules_before = host_modules()
    yield
    imported_more = host_modules() != modules_before
    test_module = request.module.__name__ if imported_more else None
    for registry in all_registries():
        if id(registry) in before:
            restore_registry(registry, before[id(registry)], test_module)
