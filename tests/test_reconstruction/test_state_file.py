"""Files of one unit's state: whole and intact, or none."""

import copy
import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import ranks_worker
import torch

from taskptq.calibration import calibrate
from taskptq.modules.base import quant_modules
from taskptq.prepare import prepare
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import MSEReconLoss
from taskptq.reconstruction.resume import UnitStates
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.reconstruction.state_file import StateError, write_state
from taskptq.testing import tiny_batches, tiny_model

NAME = 'unit_002_rank0.pth'
KEY = 'layer2.conv1:weight'
POINT = 'conv1.input_quantizer'


def change(key, value):
    """Change an entry, and the digest over the content with it."""

    def apply(path):
        state = torch.load(path, weights_only=True)
        *places, last = key
        node = state
        for place in places:
            node = node[place]
        node[last] = value(node[last]) if callable(value) else value
        state.pop('content')
        try:
            write_state(path, state)
        except StateError:  # what has no digest is not written
            torch.save({**state, 'content': 'x'}, path)

    return apply


def alter_codes(path):
    """Change a code within its grid, and leave the digest as it was."""
    state = torch.load(path, weights_only=True)
    codes = state['codes'][KEY].view(-1)
    codes[0] = 0 if codes[0] else 1
    torch.save(state, path)


def first_version(path):
    state = torch.load(path, weights_only=True)
    torch.save(
        {
            key: state[key]
            for key in (
                'digest',
                'result',
                'codes',
                'biases',
                'quantizers',
            )
        },
        path,
    )


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts['archive/zeros'] = bytes(1 << 26)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


DAMAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('no state'),
    'half': lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
    ),
    'one bit': lambda path: path.write_bytes(
        bytes(b ^ (i == 3000) for i, b in enumerate(path.read_bytes()))
    ),
    'pickle': lambda path: path.write_bytes(pickle.dumps({'a': 1})),
    'another pickle': lambda path: torch.save(Path('x'), path),
    'tensor': lambda path: torch.save(torch.ones(3), path),
    'other keys': lambda path: torch.save({'digest': 'x', 3: 4}, path),
    'large': lambda path: torch.save(torch.ones(1 << 21), path),
    'compressed': compressed,
    'first version': first_version,
    'altered codes': alter_codes,
    'a list as digest': change(['digest'], None),
    'a tensor as digest': change(['digest'], torch.ones(3)),
    'altered digest': change(['digest'], 'x'),
    'codes off the grid': change(['codes', KEY], lambda c: c + 8),
    'codes of another shape': change(['codes', KEY], lambda c: c[:1]),
    'codes of another type': change(['codes', KEY], lambda c: c.float()),
    'codes as a list': change(['codes', KEY], None),
    'codes of another layer': change(
        ['codes'], lambda c: c | {'head:weight': c[KEY]}
    ),
    'no codes': change(['codes'], None),
    'repeated codes': change(
        ['codes', KEY], lambda c: c.view(-1)[:1].expand(1 << 40)
    ),
    'sparse codes': change(['codes', KEY], lambda c: c.to_sparse()),
    'no quantizers': change(['quantizers'], lambda q: {}),
    'quantizers as text': change(['quantizers'], 'none'),
    'no scale': change(['quantizers', POINT], lambda q: {'grid': q['grid']}),
    'negative scale': change(['quantizers', POINT, 'scale'], lambda s: -s),
    'endless scale': change(['quantizers', POINT, 'scale'], lambda s: s / 0),
    'two scales': change(
        ['quantizers', POINT, 'scale'], lambda s: s.repeat(2)
    ),
    'wide grid': change(['quantizers', POINT, 'grid'], lambda g: g * 1000),
    'weight scale': change(
        ['quantizers', 'conv1.weight_quantizer', 'scale'], lambda s: s * 2
    ),
    'result of another unit': change(['result', 'name'], 'stem'),
    'steps as text': change(['result', 'steps'], '8'),
    'negative steps': change(['result', 'steps'], -1),
    'result without fields': change(['result'], lambda r: {}),
}


@pytest.fixture(scope='module')
def calibrated():
    """The model of that run before its reconstruction."""
    model = tiny_model('conv')
    prepare(model, ranks_worker.qconfig())
    batches = tiny_batches('conv', num_batches=3)
    calibrate(model, batches, forward=ranks_worker.run_model)
    return model


@pytest.fixture
def load(finished, calibrated, tmp_path):
    """Load the state of the third unit of the run; returns the model too."""
    model = copy.deepcopy(calibrated)
    states = UnitStates(
        tmp_path,
        model,
        ranks_worker.settings(steps=8),
        loss=MSEReconLoss(),
        num_batches=3,
    )
    unit = Unit('layer2', model.layer2)
    return lambda: (states.load(2, unit), model)


def test_a_whole_state_is_loaded(load, calibrated):
    result, model = load()
    assert (result.name, result.steps) == ('layer2', 8)
    assert model.layer2.conv1.rounded_parameters
    before, after = (
        m.layer2.conv1.input_quantizer.scale for m in (calibrated, model)
    )
    assert not torch.equal(before, after)


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_state_that_is_not_whole_is_none(
    load, calibrated, kind, tmp_path, caplog
):
    path = tmp_path / NAME
    before = path.read_bytes()
    DAMAGES[kind](path)
    assert path.read_bytes() != before
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        result, model = load()
    assert result is None
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert '\n' not in record.getMessage()
    assert not any(m.rounded_parameters for _, m in quant_modules(model))
    for name, value in calibrated.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize('kind', ['half', 'altered codes', 'two scales'])
def test_its_unit_is_trained_again(
    quick_run, finished, kind, tmp_path, caplog
):
    DAMAGES[kind](tmp_path / NAME)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report, payload = quick_run(tmp_path)
    assert len(caplog.records) == 1
    assert report.resumed_units == 3
    assert payload['digest'] == finished
    # The next run finds the new one.
    assert quick_run(tmp_path)[0].resumed_units == 4


def test_nothing_of_a_bad_state_reaches_the_model(quantized, quick, tmp_path):
    model = quantized('transformer')
    unit = Unit('layers.0', model.layers[0])

    def states():
        return UnitStates(tmp_path, model, quick(), loss=MSEReconLoss())

    states().save(0, unit, UnitResult(name=unit.name))
    path = tmp_path / 'unit_000_rank0.pth'
    *_, last = dict(torch.load(path)['quantizers'])
    change(['quantizers', last], lambda state: state | {'more': None})(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert states().load(0, unit) is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(m.rounded_parameters for _, m in unit.layers())
