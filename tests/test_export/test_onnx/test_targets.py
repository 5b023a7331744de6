import pytest

from taskptq.core.setting_error import SettingError
from taskptq.export.onnx.targets import find_target


def test_only_tensorrt_refuses_zero_points():
    assert find_target('onnxruntime').zero_points
    assert find_target('onnxruntime').completes
    assert not find_target('openvino').completes
    assert not find_target('tensorrt').zero_points
    with pytest.raises(SettingError, match='onnxruntime, openvino'):
        find_target('x')
