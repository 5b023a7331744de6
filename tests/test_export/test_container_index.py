"""The index of a file: every claim is checked before it is believed."""

import json
import zlib

import pytest
import torch

from taskptq.export import QuantizedCheckpointError
from taskptq.export.container import to_file, to_payload
from taskptq.export.container_index import (
    MAX_INDEX_BYTES,
    merged_parts,
    num_codes,
    open_index,
)


def as_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).clone()


@pytest.fixture
def stored(payload):
    return to_file(payload, codec='auto')


@pytest.fixture
def changed(stored):
    """Return the file with a changed index."""

    def change(edit):
        index = json.loads(zlib.decompress(stored['index'].numpy().tobytes()))
        edit(index)
        text = json.dumps(index).encode()
        return {**stored, 'index': as_bytes(zlib.compress(text))}

    return change


def test_everything_is_declared(stored, payload):
    index = open_index(stored)
    assert index.plain['recipe'] == payload['recipe']
    names = [item.name for item in index.items]
    assert names == [
        *payload['weights'],
        *payload['quantizers'],
        *payload['float'],
    ]
    sizes = [len(section.data) for section in index.sections]
    assert sum(sizes) == len(stored['data'])
    for number, section in enumerate(index.sections):
        members = [i for i in index.items if i.section == number]
        assert {item.kind for item in members} == {section.kind}
        bits = section.layout.bits
        total = sum(num_codes(item, bits=bits) for item in members)
        assert section.layout.num_codes == total


def weights(**columns):
    return lambda index: index['weights'].update(columns)


def first_row(bits=None, length=None):
    def edit(index):
        row = index['sections'][0]
        index['sections'][0] = [
            row[0] if bits is None else bits,
            row[1] if length is None else length,
        ]

    return edit


def huge(index):
    index['weights']['shape'] = [[1 << 39, 1 << 39]] * 2


@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (huge, 'declares'),
        (weights(shape=[[-1], [2]]), 'entry'),
        (weights(shape=[[1 << 50], [2]]), 'entry'),
        (weights(shape=[[1.5], [2]]), 'entry'),
        (weights(shape=[[1] * 17, [2]]), 'entry'),
        (weights(num_bits=[0, 2]), 'entry'),
        (weights(num_bits=[17, 2]), 'entry'),
        (weights(num_bits=[True, 2]), 'entry'),
        (weights(name=['one.weight'] * 2), 'unequal'),
        (weights(name=[3, 'two.weight']), 'unequal'),
        (weights(name=['one.weight']), 'unequal'),
        (weights(section=[0, 99]), 'no section'),
        (weights(section=[-1, 0]), 'no section'),
        (weights(extra=[]), 'other columns'),
        (lambda i: i.update(weights=[]), 'other columns'),
        (lambda i: i['float'].update(dtype='float32'), 'unequal'),
        (lambda i: i['float']['dtype'].__setitem__(0, 'object'), 'entry'),
        (lambda i: i.pop('meta'), 'other parts'),
        (lambda i: i.update(more=1), 'other parts'),
        (lambda i: i.update(sections=3), 'no list of sections'),
        (lambda i: i['sections'].pop(), 'no section'),
        (lambda i: i['sections'].append([8, 4]), 'has the section'),
        (first_row(bits=7), 'section of others'),
        (first_row(bits='a'), 'has the section'),
        (first_row(length=0), 'section of 0 bytes'),
        (first_row(length=1 << 40), 'section of 1,099,511,627,776 bytes'),
        (first_row(length=1), 'damaged'),
    ],
)
def test_impossible_claims_are_refused(changed, edit, words):
    with pytest.raises(QuantizedCheckpointError, match=words) as caught:
        to_payload(changed(edit))
    assert '\n' not in str(caught.value)


def test_the_index_is_bounded(stored):
    bomb = zlib.compress(b' ' * (MAX_INDEX_BYTES + 1))
    for data in (
        bomb,
        zlib.compress(b'[' * 100_000),
        b'\0\1\2',
        stored['index'].numpy().tobytes()[:-9],
        stored['index'].numpy().tobytes() + b'x',
        zlib.compress(b'[]'),
    ):
        with pytest.raises(QuantizedCheckpointError, match='index'):
            open_index({**stored, 'index': as_bytes(data)})


@pytest.mark.parametrize(
    'part',
    [
        {'data': 'text'},
        {'data': torch.zeros(3)},
        {'data': torch.zeros(2, 2, dtype=torch.uint8)},
        {'data': torch.zeros(4, dtype=torch.uint8)[::2]},
        {'index': torch.zeros(4, dtype=torch.uint8, device='meta')},
        {'codecs': 'rans'},
        {'codecs': [1]},
        {'codecs': ['dense'] * 999},
        {'more': 1},
        {'taskptq': {'schema': 3}},
        {'taskptq': {'schema': 3, 'version': 3}},
    ],
)
def test_other_fields_are_refused(stored, part):
    with pytest.raises(QuantizedCheckpointError):
        open_index({**stored, **part})


def test_bytes_in_no_section_are_refused(stored):
    longer = torch.cat([stored['data'], stored['data'][:1]])
    with pytest.raises(QuantizedCheckpointError, match='1 bytes in no'):
        open_index({**stored, 'data': longer})


def test_small_parts_are_joined():
    assert merged_parts([]) == ()
    assert merged_parts([9, 9, 900, 900, 1, 2000]) == (918, 901, 2000)
    assert merged_parts([1000, 300]) == (1000, 300)
