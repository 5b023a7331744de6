"""Look-up through mmengine, version checks, what a checkpoint may contain."""

import os
import subprocess
import sys
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
import warm_python
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope

from taskptq import registry

KINDS = [
    'HOOKS',
    'LOOPS',
    'METRICS',
    'MODELS',
    'TASK_UTILS',
    'TRANSFORMS',
    'VISUALIZERS',
]
OWN_KINDS = ['OBSERVERS', 'QUANTIZERS', 'RECON_LOSSES', 'REWRITES', 'ADAPTERS']


class Thing:
    def __init__(self, size: int = 1, colour: str = 'red') -> None:
        self.size = size
        self.colour = colour


@pytest.mark.parametrize('kind', KINDS)
def test_known_kinds_are_children_of_mmengine(kind):
    ours = getattr(registry, kind)
    assert ours.scope == 'taskptq'
    assert ours.parent.scope == 'mmengine'
    assert ours.parent.children['taskptq'] is ours


@pytest.mark.parametrize('kind', OWN_KINDS)
@pytest.mark.parametrize('type_name', ['Thing', 'taskptq.Thing'])
@pytest.mark.parametrize('default_scope', [None, 'mmdet'])
def test_own_kinds_build_in_any_default_scope(
    kind, type_name, default_scope, registry_guard
):
    own = getattr(registry, kind)
    own.register_module(module=Thing)
    with DefaultScope.overwrite_default_scope(default_scope):
        built = own.build(dict(type=type_name, size=3), colour='blue')
    assert isinstance(built, Thing)
    assert (built.size, built.colour) == (3, 'blue')


def test_own_kinds_take_a_class_as_type():
    built = registry.OBSERVERS.build(dict(type=Thing, size=2), size=5)
    assert built.size == 2


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(size=3), 'needs the key "type"'),
        (dict(type='NoSuchObserver'), "'NoSuchObserver' is not a registered"),
    ],
)
def test_own_kinds_name_what_is_wrong(cfg, message):
    with pytest.raises(KeyError, match=message):
        registry.OBSERVERS.build(cfg)


@pytest.mark.parametrize('kind', OWN_KINDS)
def test_a_look_up_imports_nothing(kind, tmp_path, monkeypatch):
    own = getattr(registry, kind)
    mark = tmp_path / 'imported'
    (tmp_path / 'stranger_module.py').write_text(
        f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
        'class Thing:\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.registered(own, 'stranger_module.Thing') is None
    with pytest.raises(KeyError, match='not a registered'):
        own.build(dict(type='stranger_module.Thing'))
    assert not mark.exists()


def test_registered_names(registry_guard):
    own = registry.OBSERVERS
    own.register_module(name='Thing', module=Thing)
    assert registry.registered(own, 'taskptq.Thing') is Thing
    assert registry.registered(own, 'mmdet.Thing') is None
    assert registry.registered_name(own, Thing) == 'Thing'
    own.register_module(name='Alias', module=Reducing)
    assert registry.registered_name(own, Reducing) == 'Alias'
    with pytest.raises(ValueError, match='custom_imports') as error:
        registry.registered_name(own, dict)
    assert 'builtins.dict is not a registered observer' in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('default_scope', 'import_package'),
    [('mmengine', False), ('mmdet', True), ('mmseg', False)],
)
def test_the_hook_is_found_by_its_scoped_name(
    default_scope, import_package, tmp_path
):
    config = tmp_path / 'config.py'
    custom = "custom_imports = dict(imports=['taskptq'])\n"
    config.write_text(
        (custom if import_package else '')
        + "custom_hooks = [dict(type='taskptq.PTQHook')]\n"
    )
    program = (
        'import sys\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import HOOKS, init_default_scope\n'
        f'init_default_scope({default_scope!r})\n'
        f'config = Config.fromfile({str(config)!r})\n'
        'assert "taskptq.registry" not in sys.modules\n'
        'with HOOKS.switch_scope_and_registry(None) as hooks:\n'
        '    print(hooks.get(config.custom_hooks[0].type).__module__)\n'
    )
    result = warm_python.run(['-c', program], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == 'taskptq.engine.ptq_hook'


def test_the_package_itself_can_be_a_custom_import(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        "custom_imports = dict(imports=['taskptq'], "
        'allow_failed_imports=False)\n'
    )
    assert Config.fromfile(config).custom_imports['imports'] == ['taskptq']


@pytest.mark.parametrize(
    ('version', 'accepted'),
    [
        ('1.9.9', False),
        ('2.0.0', True),
        ('2.3.6', True),
        ('2.99', True),
        ('3.0.0', False),
        ('2.0.0rc4', False),
    ],
)
def test_versions_outside_of_the_range_are_refused(
    version, accepted, monkeypatch
):
    monkeypatch.setattr(
        registry,
        'installed_version',
        lambda name: version if name == 'mmcv' else None,
    )
    if accepted:
        registry.check_versions()
        return
    with pytest.raises(RuntimeError, match=f'mmcv >= 2.0.0.*{version}'):
        registry.check_versions()


def test_version_of_a_source_tree_without_metadata(tmp_path, monkeypatch):
    (tmp_path / 'mmtree.py').write_text("__version__ = '2.1.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        registry.SUPPORTED_VERSIONS,
        'mmtree',
        (('no-such-distribution',), '1.0', '2.0'),
    )
    assert registry.installed_version('mmtree') == '2.1.0'
    with pytest.raises(RuntimeError, match=r'mmtree >= 1\.0, .*2\.1\.0'):
        registry.check_versions()


def test_an_absent_package_has_no_version(monkeypatch):
    monkeypatch.setitem(
        registry.SUPPORTED_VERSIONS, 'mmabsent', (('mmabsent',), '1.0', '2.0')
    )
    assert registry.installed_version('mmabsent') is None
    registry.check_versions()


def test_a_version_complaint_passes_through_mmengine(tmp_path):
    program = (
        'from importlib import metadata\n'
        'real = metadata.version\n'
        'metadata.version = lambda n: "9.9" if "mmdet" in n else real(n)\n'
        'from mmengine.registry import HOOKS\n'
        'HOOKS.build(dict(type="taskptq.PTQHook"))\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert 'RuntimeError: taskptq needs mmdet >= ' in result.stderr
    assert 'not in the' not in result.stderr


def training_log() -> dict:
    buffer = HistoryBuffer()
    for value in (1.0, 2.0, 6.0):
        buffer.update(value)
    return dict(loss=buffer, best=np.float64(0.5), ap=np.float32(0.25))


def test_training_checkpoints_load_with_weights_only(tmp_path):
    torch.save(training_log(), tmp_path / 'epoch_1.pth')
    # mmengine's own loader withdraws what it allows for itself.
    registry.allow_history_buffers()
    loaded = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert loaded['loss'].mean() == 3.0
    assert loaded['loss'].statistics('max') == 6.0
    assert (loaded['best'], loaded['ap']) == (0.5, 0.25)


class Reducing:
    """Pickles as a call: ``function(*arguments)``."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'content',
    [
        Reducing(os.system, 'true'),
        Reducing(getattr, np.ndarray, 'tofile'),
        Reducing(getattr, HistoryBuffer, '__init__'),
        Reducing(getattr, HistoryBuffer, '_set_default_statistics'),
        Thing(),
        np.array([Thing], dtype=object),
    ],
    ids=['system', 'getattr-other', 'dunder', 'private', 'class', 'objects'],
)
def test_nothing_else_loads_with_weights_only(content, tmp_path):
    torch.save(dict(state_dict=content), tmp_path / 'strange.pth')
    with pytest.raises(UnpicklingError):
        torch.load(tmp_path / 'strange.pth', weights_only=True)


GUARDED_TEST = """
import pytest
from mmengine.registry import HOOKS
from taskptq.registry import OBSERVERS


class Probe:
    pass


def test_registers(registry_guard):
    HOOKS.register_module(module=Probe)
    OBSERVERS.register_module(module=Probe)
    HOOKS.register_module(name='IterTimerHook', force=True, module=Probe)


def test_sees_nothing_of_it():
    assert 'Probe' not in HOOKS.module_dict
    assert 'Probe' not in OBSERVERS.module_dict
    assert HOOKS.module_dict['IterTimerHook'] is not Probe
"""


@pytest.mark.slow
def test_registry_guard_restores(tmp_path, repo_root):
    (tmp_path / 'conftest.py').write_text(
        (repo_root / 'tests' / 'conftest.py').read_text()
    )
    (tmp_path / 'test_probe.py').write_text(
        'import mmengine.hooks\n' + GUARDED_TEST
    )
    paths = [str(repo_root), str(repo_root / 'tests' / 'helpers')]
    result = warm_python.run(
        ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'test_probe.py'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
    )
    assert '2 passed' in result.stdout, result.stdout
