import numpy as np
import pytest
import torch

from taskptq.export.onnx.emission import Grid
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.lowering import storage_of
from taskptq.export.onnx.targets import TARGETS


def grid(low, high, *, bits=8, zero_point=0):
    return Grid(
        name='a',
        scale=torch.ones(1),
        zero_point=torch.tensor([zero_point], dtype=torch.int32),
        quant_min=low,
        quant_max=high,
        num_bits=bits,
        ch_axis=None,
    )


@pytest.mark.parametrize(
    ('given', 'kind', 'shift'),
    [
        (grid(0, 255), np.uint8, 0),
        (grid(-128, 127), np.uint8, 128),
        (grid(-8, 7, bits=4), np.uint8, 8),
        (grid(0, 65535, bits=16), np.int16, -32768),
        (grid(-2048, 2047, bits=12), np.int16, 0),
    ],
)
def test_codes_are_shifted_into_the_type_of_the_runtime(given, kind, shift):
    target = TARGETS['onnxruntime']
    assert storage_of(given, target=target) == (kind, shift)


@pytest.mark.parametrize(
    'given',
    [grid(0, 255), grid(-128, 127, zero_point=3), grid(-512, 511, bits=10)],
)
def test_tensorrt_reads_signed_bytes_around_zero_alone(given):
    with pytest.raises(OnnxExportError, match='a has'):
        storage_of(given, target=TARGETS['tensorrt'])
    assert storage_of(grid(-128, 127), target=TARGETS['tensorrt']) == (
        np.int8,
        0,
    )
