"""Fixtures and markers that all tests share."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from quick_runner import quick_runner  # noqa: F401 - a fixture

import taskptq.methods  # noqa: F401 - so that recipes find its classes by name
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model

ROOT = Path(__file__).resolve().parents[1]
TINY_TASK = ROOT / 'tests' / 'tiny_task'
QCONFIG = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=4),
    edge_bits=None,
)
HOST_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'taskptq')


def pytest_configure(config):
    """Keep each worker on one thread: the workers share the cores.

    Collect garbage rarely: with all that the tests import, looking for it
    takes a tenth of the time of small tests.
    """
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    gc.set_threshold(20_000, 20, 20)


def browser_lacks() -> str | None:
    """Return what a test in a browser lacks, or None."""
    if find_spec('playwright') is None:
        return 'needs playwright: pip install playwright'
    if which('chromium') is None:
        return 'needs Chromium: apt-get install chromium'
    return None


def skip_reason(item) -> str | None:
    """Return why a test cannot run here, or None."""
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        return 'needs a CUDA device'
    if item.get_closest_marker('browser') and browser_lacks():
        return browser_lacks()
    for marker in item.iter_markers('data'):
        for name in marker.args:
            if not (ROOT / 'data' / name).is_dir():
                return (
                    f'needs data/{name}; link the folder that holds it '
                    'with `make data-link DIR=...`'
                )
    return None


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run, with the reason.

    Files with slow tests come first, so that no worker is left with a long
    one while the others have finished.
    """
    slow = set()
    for item in items:
        reason = skip_reason(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker('slow'):
            slow.add(item.path)
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what the hosts' pipelines use
    # `torch.manual_seed` also keeps a formatted stack for each kind of
    # device that isn't there: a third of the time of an empty test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


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
        value
        for module in (mmengine_registry, taskptq_registry)
        for value in vars(module).values()
        if isinstance(value, Registry)
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


@pytest.fixture
def tiny_path(registry_guard, monkeypatch):
    """Make ``custom_imports=['tiny_task']`` work; returns the config."""
    from mmengine.registry import DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(TINY_TASK))
    sys.modules.pop('tiny_task', None)
    yield TINY_TASK / 'tiny_config.py'
    sys.modules.pop('tiny_task', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture
def tiny_config(tiny_path, tmp_path):
    """The tiny task's config, loaded, with a work_dir."""
    from mmengine.config import Config

    config = Config.fromfile(tiny_path)
    config.work_dir = str(tmp_path / 'work')
    return config


@pytest.fixture
def float_checkpoint(tiny_config, tmp_path):
    """A float checkpoint of the tiny task."""
    import tiny_task

    torch.manual_seed(1)
    model = tiny_task.TinyNet()
    with torch.no_grad():
        model.bn1.running_mean.normal_()
        model.bn1.running_var.uniform_(0.5, 2)
    path = tmp_path / 'float.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return path


@pytest.fixture
def make_runner(tiny_config, tmp_path):
    """Build runners of the tiny task: hooks and checkpoint as given."""
    import copy

    from mmengine.runner import Runner

    count = iter(range(100))

    def make(checkpoint=None, *, hook=None, **changes):
        config = copy.deepcopy(tiny_config)
        config.experiment_name = f'{tmp_path.name}_{next(count)}'
        config.load_from = None if checkpoint is None else str(checkpoint)
        if hook is not None:
            config.custom_hooks = [
                *config.custom_hooks,
                dict(type='taskptq.PTQHook', **hook),
            ]
        config.merge_from_dict(changes)
        return Runner.from_cfg(config)

    return make


@pytest.fixture
def qconfig():
    """A plain 4-bit recipe."""
    import copy

    return copy.deepcopy(QCONFIG)


@pytest.fixture
def predictions():
    """What the last evaluation predicted, (N, 4)."""

    def read():
        import tiny_task

        return tiny_task.TinyMetric.predictions.clone()

    return read


def run_model(model, batch):
    return model(batch)


@pytest.fixture
def forward():
    """The model is called with the batch itself."""
    return run_model


@pytest.fixture
def count_calls():
    """Count how often a module starts to run."""

    def start(module):
        calls = []
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        return calls

    return start


@pytest.fixture
def make_qconfig():
    """Recipe of low-bit weights and learned activation scales."""

    def make(bits=2, activation_bits=8, **kwargs):
        settings = dict(
            weight=dict(num_bits=bits, symmetric=False),
            activation=dict(type='LSQQuantizer', num_bits=activation_bits),
            edge_bits=None,
        )
        return QConfig.from_dict(settings | kwargs)

    return make


@pytest.fixture
def quantized(make_qconfig):
    """Prepare and calibrate a tiny model, or a given module."""

    def make(model='conv', batches=None, **kwargs):
        if isinstance(model, str):
            batches = batches or tiny_batches(model)
            model = tiny_model(model)
        prepare(model.eval(), make_qconfig(**kwargs))
        if batches is not None:
            calibrate(model, batches, forward=run_model)
        return model

    return make
