from taskptq.export.onnx.errors import OnnxExportError


def test_it_is_a_value_error_that_commands_show_in_one_line():
    assert issubclass(OnnxExportError, ValueError)
