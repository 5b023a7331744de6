"""The tiny task, registered for one test."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

HERE = Path(__file__).resolve().parent
QCONFIG = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=4),
    edge_bits=None,
)


@pytest.fixture
def tiny_path(registry_guard, monkeypatch):
    """Make ``custom_imports=['tiny_task']`` work; returns the config."""
    from mmengine.registry import DefaultScope
    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop('tiny_task', None)
    yield HERE / 'tiny_config.py'
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
                *config.custom_hooks, dict(type='taskptq.PTQHook', **hook)
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
