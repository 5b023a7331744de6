"""Payloads that are built wrongly, under a digest that matches."""

import contextlib
import re
import warnings

import pytest
import torch
from torch import nn

from taskptq.core import QuantizerConfig, QuantSpec
from taskptq.export import (
    QuantizedCheckpointError,
    load,
    pack_model,
    save,
    unpack_model,
    verify,
)
from taskptq.export.schema import compute_digest
from taskptq.modules.base import Scheme
from taskptq.modules.linear import QuantLinear


def signed(payload):
    """Return the payload with the digest that anyone can compute."""
    # What cannot even be hashed keeps its old digest.
    with contextlib.suppress(
        AttributeError,
        LookupError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        payload['digest'] = compute_digest(payload)
    return payload


def refused(payload, match):
    with pytest.raises(QuantizedCheckpointError, match=match) as caught:
        verify(payload)
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 500


VALUES = [
    None,
    3,
    -1,
    True,
    0.5,
    float('nan'),
    'text',
    b'raw',
    [],
    {},
    (),
    set(),
    [1, 2],
    {'a': 1},
    {1: 2},
    object(),
    torch.ones(2),
    nn.Parameter(torch.ones(2)),
    torch.ones(2).to_sparse(),
    torch.ones(2, device='meta'),
]


@pytest.mark.parametrize(
    'section',
    [
        'taskptq',
        'state_dict',
        'recipe',
        'structure',
        'meta',
        'weights',
        'quantizers',
        'float',
        'digest',
    ],
)
def test_sections_of_any_other_value(payload, section):
    for value in VALUES:
        payload[section] = value
        if type(value) is dict and section in ('recipe', 'structure', 'meta'):
            if 1 not in value:
                verify(signed(payload))
                continue
        elif section == 'state_dict' and type(value) is str:
            verify(payload)
            continue
        elif section in ('weights', 'quantizers', 'float') and value == {}:
            continue  # whether something is missing only a model tells
        if section != 'digest':
            signed(payload)
        refused(payload, 'checkpoint')


@pytest.mark.parametrize('section', ['weights', 'quantizers', 'float'])
@pytest.mark.parametrize('value', VALUES, ids=lambda v: type(v).__name__)
def test_entries_of_any_other_value(payload, section, value):
    first = next(iter(payload[section]))
    payload[section][first] = value
    if section == 'quantizers':
        first = first.rpartition('.')[0]
    if (
        section != 'float'
        or type(value) is not torch.Tensor
        or (value.is_sparse or value.is_meta)
    ):
        refused(signed(payload), re.escape(first))


@pytest.mark.parametrize('field', ['packed', 'shape', 'num_bits', 'quant_min'])
@pytest.mark.parametrize(
    'value',
    [
        *VALUES,
        0,
        17,
        10**30,
        [8, 7],
        [-8, 6],
        [8.0, 6],
        [True, 48],
        [[8], 6],
        [2**40, 2**40],
        [0, 2**40],
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(100, dtype=torch.uint8)[::2],
    ],
    ids=lambda v: type(v).__name__,
)
def test_fields_of_weights(payload, field, value):
    payload['weights']['one.weight'][field] = value
    refused(signed(payload), r'one\.weight')


def test_missing_and_extra_parts(payload):
    for section in list(payload):
        broken = {k: v for k, v in payload.items() if k != section}
        refused(broken, section)
    refused({**payload, 'extra': 1}, "section 'extra'")
    refused({**payload, 3: 1}, 'section 3')
    refused({}, 'not a quantized checkpoint')
    refused(None, 'not a quantized checkpoint')
    del payload['weights']['one.weight']['shape']
    refused(signed(payload), r'one\.weight')


@pytest.mark.parametrize('section', ['weights', 'quantizers', 'float'])
@pytest.mark.parametrize('key', [3, None, ('a',), 'x' * 2000, True, b'a'])
def test_keys_that_are_no_names(payload, section, key):
    first = next(iter(payload[section].values()))
    payload[section] = {**payload[section], key: first}
    refused(signed(payload), f'section {section!r}')


@pytest.mark.parametrize('section', ['recipe', 'structure', 'meta'])
@pytest.mark.parametrize('key', [3, None, ('a',), True])
def test_keys_of_plain_sections_are_str(payload, section, key):
    payload[section] = {'a': [{key: 1}]}
    refused(signed(payload), f'{section}.*key')
    with pytest.raises(QuantizedCheckpointError, match=f'{section}.*key'):
        pack_model(
            QuantLinear.from_float(nn.Linear(2, 2), scheme=Scheme()),
            **{'recipe': {}, 'meta': {}, section: {'a': [{key: 1}]}},
        )


@pytest.mark.parametrize(
    'make',
    [
        lambda: torch.ones(1).expand(10**12),
        lambda: torch.ones(4, 4).t(),
        lambda: torch.ones(2).to_sparse(),
        lambda: torch.ones(2, 2).to_sparse_csr(),
        lambda: torch.ones(2, device='meta'),
        lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.ones(2, dtype=torch.complex64).imag.neg()._neg_view(),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.ones([1] * 20),
        lambda: nn.Parameter(torch.ones(2)),
        lambda: nn.Linear(2, 2),
    ],
    ids=range(13),
)
@pytest.mark.parametrize('section', ['quantizers', 'float'])
def test_tensors_of_other_kinds(payload, section, make):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        payload[section]['one.x'] = make()
    refused(payload, r"'one\.x'.*checkpoint")


def test_tensors_that_share_memory(payload):
    base = torch.ones(10_000)
    for i in range(3):
        payload['float'][f'x{i}'] = base.view(100, 100)
    refused(signed(payload), 'share')


def shared_lists():
    value = ['x']
    for _ in range(40):
        value = [value, value]
    return value


def circular():
    value = []
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize('section', ['recipe', 'structure', 'meta'])
@pytest.mark.parametrize(
    'make',
    [
        shared_lists,
        circular,
        deep,
        lambda: ['x' * (1 << 20)] * 100,
        lambda: [0] * 600_000,
    ],
)
def test_nesting_is_bounded(payload, section, make):
    payload[section] = {'a': make()}
    refused(payload, section)


def test_number_of_patterns_is_bounded(payload):
    pattern = {'pattern': '*', 'weight': False}
    payload['recipe']['qconfig']['overrides'] = [pattern] * 1001
    refused(signed(payload), 'overrides.*1,001')


# Written by the version that had schema 1; its digest is of that version.
SCHEMA_1_DIGEST = (
    '9e2067f04a2f504c9cb4fad7834ac82af14fec115e57caafb1c13af504540a8b'
)


def schema_1():
    return {
        'taskptq': {'schema': 1, 'version': '0.1.0'},
        'state_dict': 'taskptq quantized file',
        'recipe': {'qconfig': {'weight': {'num_bits': 2}}, 'seed': 3},
        'weights': {
            'weight': {
                'packed': torch.tensor([0b11100100, 0b00011011]).byte(),
                'shape': [2, 4],
                'num_bits': 2,
                'quant_min': -2,
            }
        },
        'quantizers': {
            'weight_quantizer.grid': torch.tensor([-2, 1]).to(torch.int8),
            'weight_quantizer.scale': torch.tensor([0.5, 0.25]),
            'weight_quantizer.zero_point': torch.zeros(2).to(torch.int8),
        },
        'float': {'bias': torch.tensor([1.0, -1.0])},
        'meta': {'classes': ['a'], 1: None},
        'digest': SCHEMA_1_DIGEST,
    }


def test_schema_1_is_read_under_the_same_checks(tmp_path):
    save(schema_1(), tmp_path / 'q.pth')
    payload = load(tmp_path / 'q.pth')
    assert payload['meta'][1] is None
    weight = QuantizerConfig(
        spec=QuantSpec(num_bits=2, symmetric=True), per_channel=True
    )
    model = QuantLinear.from_float(
        nn.Linear(4, 2), scheme=Scheme(weight=weight)
    )
    unpack_model(payload, model)
    assert model.weight.tolist() == [
        [-1.0, -0.5, 0.0, 0.5],
        [0.25, 0.0, -0.25, -0.5],
    ]
    broken = schema_1()
    broken['float']['bias'][0] = 2
    refused(broken, 'digest')
    broken = schema_1()
    broken['quantizers']['weight_quantizer.scale'][0] = 0
    refused(signed(broken), 'scale')
    broken = schema_1()
    broken['meta'] = None
    refused(signed(broken), "'meta'")
    broken = schema_1()
    broken['structure'] = {}
    refused(signed(broken), "'structure'")
    broken = schema_1()
    broken['recipe'][7] = 1
    refused(signed(broken), 'recipe.*key 7')


def test_our_own_files_have_schema_2(payload):
    assert payload['taskptq']['schema'] == 2
    assert payload['structure']['decisions'] == {'folded': ['one']}
    bare = pack_model(
        QuantLinear.from_float(nn.Linear(2, 2), scheme=Scheme()),
        recipe={},
        meta={},
    )
    assert bare['structure'] == {}
    verify(bare)
