"""Quantized files that a stranger made, with a digest that is right."""

import contextlib
import copy
import math
import time
import zipfile

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.export import (
    QuantizedCheckpointError,
    load,
    pack_model,
    unpack_model,
)
from taskptq.export.schema import compute_digest
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import freeze

QCONFIG = QConfig.from_dict(
    {
        'weight': {'num_bits': 2, 'symmetric': False},
        'activation': {'num_bits': 4},
        'edge_bits': None,
    }
)
NO_DIGEST = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def float_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def prepared():
    model = float_model()
    prepare(model, QCONFIG)
    return model


@pytest.fixture(scope='module')
def good():
    model = prepared()
    calibrate(
        model,
        [torch.randn(2, 3, 8, 8)],
        forward=lambda module, batch: module(batch),
    )
    freeze(model)
    return pack_model(model, recipe={'qconfig': QCONFIG.to_dict()}, meta={})


@pytest.fixture
def payload(good):
    return copy.deepcopy(good)


def first(entries, ending=''):
    return next(
        name
        for name, value in entries.items()
        if name.endswith(ending)
        and (not hasattr(value, 'numel') or value.numel())
    )


def number(kind, change):
    def apply(payload):
        name = first(payload['quantizers'], kind)
        payload['quantizers'][name] = change(payload['quantizers'][name])

    return apply


def field(name, change):
    def apply(payload):
        entry = payload['weights'][first(payload['weights'])]
        entry[name] = change(entry[name])

    return apply


def setting(*keys, to):
    def apply(payload):
        node = payload
        for key in keys[:-1]:
            node = node[key or first(node)]
        node[keys[-1] or first(node)] = to

    return apply


def one(value):
    def change(tensor):
        tensor = (
            tensor.clone()
            if tensor.is_floating_point()
            else tensor.to(torch.int32)
        )
        tensor.view(-1)[-1] = value
        return tensor

    return change


def grid(low, high):
    return lambda tensor: torch.tensor([low, high], dtype=torch.int32)


def cycle():
    found = []
    found.append(found)
    return found


def unfolds():
    found = [0]
    for _ in range(60):
        found = [found, found]
    return found


def refuses(path, match=None):
    """Assert that a file is refused and changes nothing; returns why."""
    model = prepared()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = time.perf_counter()
    with pytest.raises(QuantizedCheckpointError, match=match) as error:
        unpack_model(load(path), model)
    assert time.perf_counter() - start < 20
    text = str(error.value)
    assert '\n' not in text
    assert '\x1b' not in text
    assert 20 < len(text) < 1000
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    return text


def write(payload, path, *, digest=True):
    if digest:
        with contextlib.suppress(*NO_DIGEST):
            payload['digest'] = compute_digest(payload)
    torch.save(payload, path)
    return path


def test_the_good_file_is_read(payload, tmp_path):
    unpack_model(load(write(payload, tmp_path / 'q.pth')), prepared())


NUMBERS = {
    'scale-nan': number('weight_quantizer.scale', one(math.nan)),
    'scale-inf': number('input_quantizer.scale', one(math.inf)),
    'scale-zero': number('weight_quantizer.scale', one(0.0)),
    'scale-negative': number('input_quantizer.scale', one(-0.1)),
    'scale-empty': number('weight_quantizer.scale', lambda t: t[:0]),
    'scale-longer': number(
        'weight_quantizer.scale', lambda t: torch.cat([t, t])
    ),
    'scale-int': number(
        'weight_quantizer.scale',
        lambda t: torch.ones_like(t, dtype=torch.int32),
    ),
    'zero-point-far': number('input_quantizer.zero_point', one(10**9)),
    'zero-point-nan': number(
        'input_quantizer.zero_point', lambda t: torch.full(t.shape, math.nan)
    ),
    'grid-reversed': number('input_quantizer.grid', grid(15, 0)),
    'grid-wide': number('input_quantizer.grid', grid(-(2**31), 2**31 - 1)),
    'grid-three': number(
        'input_quantizer.grid', lambda t: torch.tensor([0, 1, 2]).int()
    ),
    'quant-min-far': field('quant_min', lambda v: -1000),
    'quant-min-nan': field('quant_min', lambda v: math.nan),
    'bits-thirty-two': field('num_bits', lambda v: 32),
    'bits-text': field('num_bits', str),
    'packed-short': field('packed', lambda t: t[:-1].clone()),
    'packed-long': field('packed', lambda t: torch.cat([t, t[:1]])),
    'shape-negative': field('shape', lambda s: [-s[0], -s[1], *s[2:]]),
    'shape-huge': field('shape', lambda s: [2**62, *s[1:]]),
    'shape-bool': field('shape', lambda s: [True, *s[1:]]),
    'float-nan': setting('float', '', to=torch.full((8,), math.nan)),
}


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers(name, payload, tmp_path):
    NUMBERS[name](payload)
    refuses(write(payload, tmp_path / 'q.pth'))


STRUCTURES = {
    'weights-none': setting('weights', to=None),
    'weights-list': setting('weights', to=[]),
    'quantizers-none': setting('quantizers', to=None),
    'float-list': setting('float', to=[]),
    'recipe-none': setting('recipe', to=None),
    'meta-none': setting('meta', to=None),
    'digest-none': setting('digest', to=None),
    'schema-future': setting('taskptq', 'schema', to=99),
    'schema-bool': setting('taskptq', 'schema', to=True),
    'entry-none': setting('weights', '', to=None),
    'packed-list': setting('weights', '', 'packed', to=[1]),
    'float-none': setting('float', '', to=None),
    'float-dict': setting('float', '', to={'a': 1}),
    'float-sparse': setting('float', '', to=torch.eye(3).to_sparse()),
    'float-meta': setting('float', '', to=torch.zeros(8, device='meta')),
    'float-complex': setting('float', '', to=torch.zeros(8) * 1j),
    'quantizer-number': setting('quantizers', '', to=0.5),
    'keys-int': setting('float', 7, to=torch.zeros(1)),
    'keys-control': setting('float', 'a\n\x1b[2Jb', to=torch.zeros(1)),
    'recipe-cycle': setting('recipe', 'extra', to=cycle()),
    'meta-cycle': setting('meta', 'extra', to=cycle()),
    'meta-set': setting('meta', 'extra', to={1}),
}


@pytest.mark.parametrize('name', STRUCTURES)
def test_structure(name, payload, tmp_path):
    STRUCTURES[name](payload)
    refuses(
        write(
            payload, tmp_path / 'q.pth', digest=not name.startswith('digest')
        )
    )


@pytest.mark.parametrize('section', ['recipe', 'meta'])
def test_lists_that_unfold_without_end(section, payload, tmp_path):
    payload[section] = {**payload[section], 'extra': unfolds()}
    refuses(write(payload, tmp_path / 'q.pth', digest=False))


@pytest.mark.parametrize('count', [2**30, 2**40])
def test_tensors_of_many_elements_and_few_bytes(count, payload, tmp_path):
    name = first(payload['float'])
    payload['float'][name] = torch.zeros(1).expand(count)
    refuses(write(payload, tmp_path / 'q.pth', digest=False))


def test_names_without_end(payload, tmp_path):
    zero = torch.zeros(1)
    payload['float'].update({f'k{i}': zero for i in range(10**6)})
    refuses(write(payload, tmp_path / 'q.pth', digest=False))


def copied(source, path, *, kind=zipfile.ZIP_STORED, more=()):
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(path, 'w', kind) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        root = name.partition('/')[0]
        for entry, content in more:
            new.writestr(f'{root}/{entry}', content)
    return path


def test_compressed_zeros_are_not_unpacked(payload, tmp_path):
    source = write(payload, tmp_path / 'q.pth')
    refuses(
        copied(
            source,
            tmp_path / 'bomb.pth',
            kind=zipfile.ZIP_DEFLATED,
            more=[('data/extra', bytes(256 * 2**20))],
        )
    )


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_entries_of_the_same_name(payload, tmp_path):
    source = write(payload, tmp_path / 'q.pth')
    with zipfile.ZipFile(source) as old:
        pickled = old.read(old.namelist()[0])
    refuses(
        copied(source, tmp_path / 'twice.pth', more=[('data.pkl', pickled)])
    )


@pytest.mark.parametrize('where', [0.02, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_flipped_bits_and_cuts(where, payload, tmp_path):
    content = write(payload, tmp_path / 'q.pth').read_bytes()
    at = int(len(content) * where)
    path = tmp_path / 'damaged.pth'
    path.write_bytes(content[:at])
    refuses(path)
    for bit in range(0, 8, 3):
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        path.write_bytes(bytes(changed))
        # Between the entries there are bytes that mean nothing.
        with contextlib.suppress(QuantizedCheckpointError):
            found = load(path)
            assert found['digest'] == compute_digest(found)
