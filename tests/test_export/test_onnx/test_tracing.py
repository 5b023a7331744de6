import pytest
import torch
from torch import nn

from taskptq.core.setting_error import SettingError
from taskptq.export.onnx import OnnxExportError, export_onnx
from taskptq.export.onnx.tracing import reason_of


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)


def test_an_unknown_exporter_is_refused(tmp_path):
    with pytest.raises(SettingError, match='give torchscript or dynamo'):
        export_onnx(
            Spectrum(),
            (torch.eye(3),),
            tmp_path / 'm.onnx',
            input_names=['x'],
            output_names=['y'],
            exporter='fx',
        )


@pytest.mark.parametrize(
    ('exporter', 'other'),
    [('torchscript', 'dynamo'), ('dynamo', 'torchscript')],
)
def test_an_operator_without_a_form_names_the_other_exporter(
    tmp_path, exporter, other
):
    if exporter == 'dynamo':
        pytest.importorskip('onnxscript')
    with pytest.raises(OnnxExportError) as caught:
        export_onnx(
            Spectrum(),
            (torch.eye(3),),
            tmp_path / 'm.onnx',
            input_names=['x'],
            output_names=['y'],
            exporter=exporter,
        )
    message = str(caught.value)
    assert 'linalg_eig' in message.replace('.', '_')
    assert message.endswith(f"or try exporter='{other}'")
    assert '\n' not in message


def test_the_reason_of_a_chain_is_its_first_error():
    error = RuntimeError('Failed to convert the program.\nNext steps: ...')
    error.__cause__ = ValueError('no form of x. Please open a bug')
    assert reason_of(error) == 'no form of x'
    assert reason_of(RuntimeError('')) == 'RuntimeError'
