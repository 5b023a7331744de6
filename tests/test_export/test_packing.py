import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskptq.export import pack_codes, unpack_codes
from taskptq.export.packing import packed_length


@pytest.mark.parametrize('num_bits', range(1, 17))
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('length', [0, 1, 2, 7, 8, 9, 255, 1001])
def test_any_length_comes_back(num_bits, signed, length):
    quant_min = -(2 ** (num_bits - 1)) if signed else 0
    codes = torch.randint(0, 2**num_bits, (length,)) + quant_min
    packed = pack_codes(codes, num_bits=num_bits, quant_min=quant_min)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((length * num_bits + 7) // 8,)
    back = unpack_codes(
        packed, num_bits=num_bits, quant_min=quant_min, shape=(length,)
    )
    assert back.dtype == torch.int32
    assert torch.equal(back, codes.int())


@pytest.mark.parametrize('num_bits', range(1, 17))
def test_extreme_codes_come_back(num_bits):
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    codes = torch.tensor([high] * 16 + [low] * 16 + [high, low] * 9)
    packed = pack_codes(codes, num_bits=num_bits, quant_min=low)
    back = unpack_codes(
        packed, num_bits=num_bits, quant_min=low, shape=codes.shape
    )
    assert torch.equal(back, codes.int())


def test_bytes_are_the_documented_ones():
    packed = pack_codes(torch.tensor([1, 2, 3, 15]), num_bits=4, quant_min=0)
    assert packed.tolist() == [0x21, 0xF3]
    packed = pack_codes(torch.tensor([-4, 3, -3]), num_bits=3, quant_min=-4)
    assert packed.tolist() == [0b01111000, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.lists(st.integers(0, 65535), max_size=40))
def test_bits_match_a_big_integer(num_bits, values):
    values = [value % 2**num_bits for value in values]
    stream = sum(v << (i * num_bits) for i, v in enumerate(values))
    length = packed_length(len(values), num_bits=num_bits)
    expected = list(stream.to_bytes(length, 'little'))
    codes = torch.tensor(values, dtype=torch.int64)
    packed = pack_codes(codes, num_bits=num_bits, quant_min=0)
    assert packed.tolist() == expected


def test_shape_comes_back():
    codes = torch.randint(-8, 8, (3, 5, 2, 2))
    packed = pack_codes(codes, num_bits=4, quant_min=-8)
    back = unpack_codes(packed, num_bits=4, quant_min=-8, shape=[3, 5, 2, 2])
    assert torch.equal(back, codes.int())


@pytest.mark.parametrize('code', [-9, 8])
def test_code_outside_the_grid_is_refused(code):
    with pytest.raises(ValueError, match='outside the 4-bit grid'):
        pack_codes(torch.tensor([0, code]), num_bits=4, quant_min=-8)


def test_wrong_bits_and_wrong_length_are_refused():
    for num_bits in (0, 17, -1):
        with pytest.raises(ValueError, match=f'num_bits={num_bits} '):
            pack_codes(torch.tensor([0]), num_bits=num_bits, quant_min=0)
    packed = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ValueError, match='take 2 bytes'):
        unpack_codes(packed, num_bits=4, quant_min=0, shape=(4,))
