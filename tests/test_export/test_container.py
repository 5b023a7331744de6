"""The file form of payloads: smaller, exact, refused when damaged."""

import random

import pytest
import torch

from taskptq.export import QuantizedCheckpointError, load, save, verify
from taskptq.export.codecs import registry
from taskptq.export.container import (
    expanded,
    is_container,
    to_file,
    to_payload,
)
from taskptq.export.schema import CONTAINER_SCHEMA, compute_digest

CODECS = [
    name
    for name in ('dense', 'auto', 'rans', 'zstd', 'constriction')
    if name == 'auto' or registry.CODECS[name].available()
]


def same(one, two):
    """Whether payloads are equal, down to types and the order of tensors."""
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == two.dtype
            and one.shape == two.shape
            and torch.equal(
                one.reshape(-1).view(torch.uint8),
                two.reshape(-1).view(torch.uint8),
            )
        )
    if isinstance(one, dict):
        keys = set(one) if 'taskptq' in one else list(one)
        return keys == type(keys)(two) and all(
            same(one[key], two[key]) for key in one
        )
    return type(one) is type(two) and one == two


@pytest.mark.parametrize('codec', CODECS)
def test_payloads_return_bit_by_bit(payload, tmp_path, codec):
    path = tmp_path / 'q.pth'
    save(payload, path, codec=codec)
    back = load(path)
    assert same(dict(back), payload)
    assert compute_digest(back) == payload['digest']
    stored = torch.load(path, weights_only=True)
    assert is_container(stored)
    assert stored['taskptq']['schema'] == CONTAINER_SCHEMA
    assert isinstance(stored['state_dict'], str)
    # A hook that gets it from mmengine's own reader verifies this form.
    assert same(dict(verify(stored)), payload)


def test_unusual_tensors_return_exactly(payload):
    payload['float'].update(
        {
            'b.mask': torch.tensor([True, False, True]),
            'half': torch.randn(3, 2).half(),
            'brain': torch.randn(5).bfloat16(),
            'double': torch.randn(2, 3, 4).double(),
            'wave': torch.randn(4, dtype=torch.complex128),
            'index': torch.arange(700).reshape(7, 100),
            'infinite': torch.tensor([float('inf'), -0.0]),
            'count': torch.tensor(5),
            'nothing': torch.zeros(0, 3),
            'short': torch.arange(9).to(torch.int16),
        }
    )
    payload['meta']['scale'] = [0.1, float('inf'), 10**30, 'ü\ud800', None]
    payload['digest'] = compute_digest(payload)
    for codec in ('dense', 'auto'):
        back = to_payload(to_file(payload, codec=codec))
        assert same(back, payload)


@pytest.mark.parametrize('bits', [1, 2, 3, 5, 8, 11, 16])
def test_codes_of_every_width_return_exactly(payload, bits):
    count = 999
    torch.manual_seed(0)
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.int32)
    from taskptq.export import pack_codes

    for name, entry in payload['weights'].items():
        low = 0 if name.startswith('one') else -(2 ** (bits - 1))
        entry['packed'] = pack_codes(codes + low, num_bits=bits, quant_min=low)
        entry.update(num_bits=bits, quant_min=low, shape=[9, 111])
    for codec in ('dense', 'auto'):
        assert same(to_payload(to_file(payload, codec=codec)), payload)


def test_files_have_few_entries_and_old_ones_are_read(payload, tmp_path):
    old, new = tmp_path / 'old.pth', tmp_path / 'new.pth'
    torch.save(payload, old)
    save(payload, new)
    assert new.stat().st_size < 0.5 * old.stat().st_size
    assert same(dict(load(old)), dict(load(new)))
    again = tmp_path / 'again.pth'
    save(load(old), again)
    assert same(dict(load(again)), payload)


def test_old_payloads_are_expanded_to_themselves(payload):
    assert expanded(payload) is payload


def test_repetitive_plain_parts_are_read_back(payload):
    payload['meta']['classes'] = ['a' * 50] * 30_000
    payload['digest'] = compute_digest(payload)
    assert same(to_payload(to_file(payload)), payload)


@pytest.mark.parametrize('codec', ['dense', 'auto'])
def test_damaged_bytes_raise_one_clear_error(payload, codec):
    stored = to_file(payload, codec=codec)
    choice = random.Random(0)
    for i in range(300):
        part = ('index', 'data')[i % 2]
        bad = dict(stored)
        tensor = stored[part].clone()
        if i % 3 == 0:
            tensor = tensor[: choice.randrange(len(tensor))].clone()
        else:
            tensor[choice.randrange(len(tensor))] ^= 1 << choice.randrange(8)
        bad[part] = tensor
        with pytest.raises(QuantizedCheckpointError) as caught:
            verify(bad)
        assert '\n' not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_codec_that_is_missing_is_named(payload):
    stored = to_file(payload, codec='auto')
    stored['codecs'] = [*stored['codecs'][:-1], 'turbo']
    with pytest.raises(QuantizedCheckpointError, match="codec 'turbo'"):
        verify(stored)


def test_malformed_payloads_are_not_written(payload, tmp_path):
    del payload['float']
    with pytest.raises(QuantizedCheckpointError, match=r"lacks.*'float'"):
        save(payload, tmp_path / 'q.pth')
    with pytest.raises(ValueError, match=r"codec='lzw'"):
        save(payload, tmp_path / 'q.pth', codec='lzw')
    assert not list(tmp_path.iterdir())
