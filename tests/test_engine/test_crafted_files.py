"""Checkpoints that a stranger made, in a Runner and in our own reader."""

import builtins
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from taskptq.engine.checkpoint_file import read_checkpoint
from taskptq.export import load
from taskptq.export.schema import compute_digest


class Call:
    """Pickles as the call of a function; arguments may be calls again."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self):
        """Pickle wants a callable where the function is a call itself."""


@pytest.fixture
def marker(tmp_path):
    return tmp_path / 'ran'


def system(marker):
    return Call(os.system, f'echo ran > {marker}')


def through_a_class(marker):
    """Reach eval by attributes of a class that safe loading allows."""
    start = Call(builtins.getattr, HistoryBuffer, '__init__')
    scope = Call(builtins.getattr, start, '__globals__')
    found = Call(Call(builtins.getattr, scope, 'get'), '__builtins__')
    run = Call(Call(builtins.getattr, found, 'get'), 'eval')
    return Call(run, f'open({str(marker)!r}, "w").close()')


def popen(marker):
    return Call(subprocess.check_output, ['/bin/sh', '-c', f': > {marker}'])


def nested(call, **options):
    def write(marker, state, path):
        torch.save(
            {'state_dict': state, 'optimizer': [call(marker)]}, path, **options
        )

    return write


def as_key(marker, state, path):
    torch.save({'state_dict': {**state, system(marker): 1}}, path)


def bare(marker, state, path):
    path.write_bytes(pickle.dumps(system(marker)))


def in_front(marker, state, path):
    torch.save({'state_dict': state}, path)
    path.write_bytes(pickle.dumps(system(marker)) + path.read_bytes())


PICKLES = {
    'zip': nested(system),
    'protocol-4': nested(system, pickle_protocol=4),
    'legacy': nested(system, _use_new_zipfile_serialization=False),
    'class': nested(through_a_class),
    'popen': nested(popen),
    'key': as_key,
    'bare': bare,
    'in-front': in_front,
}


@pytest.fixture
def state(float_checkpoint):
    return torch.load(float_checkpoint, weights_only=True)['state_dict']


@pytest.fixture
def hook(qconfig):
    return dict(qconfig=qconfig, calibration=dict(num_images=8))


def sentence(error):
    text = str(error.value)
    assert '\n' not in text
    assert '\x1b' not in text
    assert 20 < len(text) < 1000


@pytest.mark.parametrize('name', PICKLES)
def test_reader_runs_nothing(name, marker, state, tmp_path):
    path = tmp_path / 'crafted.pth'
    PICKLES[name](marker, state, path)
    with pytest.raises(ValueError, match=path.name) as error:
        read_checkpoint(path)
    sentence(error)
    assert not marker.exists()


@pytest.mark.parametrize('name', ['zip', 'legacy', 'class'])
def test_runner_with_the_hook_runs_nothing(
    name, marker, state, tmp_path, make_runner, hook
):
    path = tmp_path / 'crafted.pth'
    PICKLES[name](marker, state, path)
    with pytest.raises(ValueError, match=path.name) as error:
        make_runner(path, hook=hook).test()
    sentence(error)
    assert not marker.exists()


def test_unpickling_leaves_the_marker(marker, state, tmp_path):
    path = tmp_path / 'crafted.pth'
    PICKLES['zip'](marker, state, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_resume_is_refused_where_nothing_trains(
    marker, state, tmp_path, make_runner, hook
):
    path = tmp_path / 'epoch_1.pth'
    code = f'open({str(marker)!r}, "w").close()'
    meta = {'epoch': 1, 'iter': 1, 'config': code}
    torch.save({'state_dict': state, 'meta': meta}, path)
    with pytest.raises(ValueError, match='resume') as error:
        make_runner(path, hook=hook, resume=True).test()
    sentence(error)
    assert not marker.exists()


def test_latest_checkpoint_of_a_training_runs_nothing(
    marker, state, tmp_path, make_runner, hook
):
    runner = make_runner(None, hook=hook, resume=True)
    folder = Path(runner.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'epoch_1.pth'
    PICKLES['zip'](marker, state, path)
    (folder / 'last_checkpoint').write_text(str(path))
    with pytest.raises(ValueError, match=path.name) as error:
        runner.train()
    sentence(error)
    assert not marker.exists()


WRONG_STATES = {
    'empty': lambda state: {},
    'none': lambda state: None,
    'list': lambda state: list(state.values()),
    'names': lambda state: {f'other.{k}': v for k, v in state.items()},
    'numbers': lambda state: dict(enumerate(state.values())),
    'lacking': lambda state: dict(list(state.items())[1:]),
    'shape': lambda state: {
        k: torch.cat([v, v]) if v.ndim == 4 else v for k, v in state.items()
    },
}


@pytest.mark.parametrize('name', WRONG_STATES)
def test_weights_of_another_model(name, state, tmp_path, make_runner, hook):
    path = tmp_path / 'other.pth'
    torch.save({'state_dict': WRONG_STATES[name](state)}, path)
    with pytest.raises(ValueError, match=path.name) as error:
        make_runner(path, hook=hook).test()
    sentence(error)


@pytest.fixture
def payload(make_runner, float_checkpoint, hook):
    """What a quantized file holds."""
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    return dict(load(Path(runner.work_dir) / 'quantized.pth'))


def command(marker):
    return {'type': 'pydoc.pipepager', 'cmd': f'echo ran > {marker}'}


def override(marker):
    return [{'pattern': '*', 'weight': {'observer': command(marker)}}]


RECIPES = {
    'observer': ('weight', lambda marker: {'observer': command(marker)}),
    'quantizer': ('activation', command),
    'softmax': ('softmax', lambda marker: {'observer': command(marker)}),
    'override': ('overrides', override),
    'import': (
        'weight',
        lambda marker: {'observer': {'type': 'crafted_marker.Mark'}},
    ),
    'class': (
        'weight',
        lambda marker: {'observer': {'type': 'torch.nn.Identity'}},
    ),
    'quantizer-as-observer': (
        'weight',
        lambda marker: {'observer': {'type': 'AffineQuantizer'}},
    ),
    'bins': (
        'weight',
        lambda marker: {
            'observer': {'type': 'HistogramObserver', 'num_bins': -5}
        },
    ),
    'backtracking': ('keep_float', lambda marker: ['re:((([a-z])+)+)+!']),
    'overrides': (
        'overrides',
        lambda marker: [{'pattern': '*', 'weight': {'num_bits': 8}}] * 20_000,
    ),
}


def test_recipes_of_files(marker, payload, tmp_path, make_runner, monkeypatch):
    module = tmp_path / 'crafted_marker.py'
    module.write_text(f'open({str(marker)!r}, "w").close()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'crafted.pth'
    for name, (key, make) in RECIPES.items():
        changed = copy.deepcopy(payload)
        changed['recipe']['qconfig'][key] = make(marker)
        changed['digest'] = compute_digest(changed)
        torch.save(changed, path)
        with pytest.raises((ValueError, RuntimeError), match='file') as error:
            make_runner(path, hook={}).test()
        sentence(error)
        assert 'crafted_marker' not in sys.modules, name
        assert not marker.exists(), name
