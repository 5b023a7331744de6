import pytest
import torch

pytest.importorskip('onnxruntime')

from taskptq.engine.free_sizes import (
    FrozenSizeError,
    check_free_sizes,
    distances,
)
from taskptq.engine.raw_outputs import image_axes, make_part
from taskptq.export.onnx import export_onnx
from taskptq.export.runtime import Session, read_onnx


@pytest.mark.parametrize(
    ('frozen', 'message'),
    [('batch', r'tensor\.shape in the model'), ('height', 'fixed --size')],
)
def test_a_size_that_code_computes_with_is_refused(tmp_path, frozen, message):
    def forward(x):
        count = len(x) if frozen == 'batch' else len(x[0, 0])
        return {'y': x + count}

    part = make_part(
        'network',
        forward,
        modules={},
        inputs={'images': torch.randn(2, 1, 64, 64)},
        axes={'images': image_axes(dynamic=True)},
    )
    path = tmp_path / 'm.onnx'
    export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
    )
    with pytest.raises(FrozenSizeError, match=message) as error:
        check_free_sizes(part, path)
    assert error.value.is_batch == (frozen == 'batch')
    assert not path.exists()
    assert f'the {frozen} of network cannot be free' in str(error.value)


def test_an_output_that_rounding_decides_is_not_taken_for_frozen(tmp_path):
    part = make_part(
        'network',
        lambda x: {'y': x, 'any': torch.randn_like(x)},
        modules={},
        inputs={'images': torch.randn(2, 1, 64, 64)},
        axes={'images': image_axes(dynamic=False)},
    )
    path = tmp_path / 'm.onnx'
    export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
    )
    check_free_sizes(part, path)
    apart = distances(
        Session(read_onnx(path))(*part.inputs),
        part.network.named_outputs(*part.inputs),
    )
    assert apart['y'] == 0
    assert apart['any'] > 1
