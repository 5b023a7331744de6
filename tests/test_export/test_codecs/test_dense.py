"""Dense sections have the bytes of packed weights."""

import numpy as np
import pytest
import torch

from taskptq.export import pack_codes
from taskptq.export.codecs import CodecError
from taskptq.export.codecs.dense import dense_bytes, dense_codes, dense_size
from taskptq.export.codecs.registry import code_dtype


@pytest.mark.parametrize('bits', [1, 2, 3, 4, 7, 8, 12, 16, 17, 32, 64])
def test_bytes_are_those_of_packed_weights(bits):
    codes = np.arange(50) % min(2**bits, 2**40)
    codes = codes.astype(code_dtype(bits))
    data = dense_bytes(codes, bits=bits)
    assert len(data) == dense_size(50, bits=bits)
    back = dense_codes(data, bits=bits, count=50)
    np.testing.assert_array_equal(back, codes)
    if bits <= 16:
        wide = torch.from_numpy(codes.astype(np.int32))
        packed = pack_codes(wide, num_bits=bits, quant_min=0)
        assert data == packed.numpy().tobytes()
    with pytest.raises(CodecError, match='bytes instead of'):
        dense_codes(data + b'\0', bits=bits, count=50)
