import torch
from torch import nn

from taskptq.export.onnx import export_onnx


def test_precise_gates_run_in_integers(exported, depthwise):
    model, batches = depthwise
    few = exported(model, batches=batches, gate_limit=100).report
    assert not few.gates
    assert len(few.float_gates) == 2
    assert not any('Sigmoid' in name for name in few.added)


def test_the_limit_decides(exported, depthwise):
    model, batches = depthwise
    more = exported(model, batches=batches, gate_limit=0).report
    assert len(more.gates) == 2
    assert any('Sigmoid' in name for name in more.added)


def test_outputs_may_stay_float(exported):
    found = exported('transposed', output_grids=False)
    assert 'y' not in found.report.added
    assert any('head' in n for n in found.report.checks['float_layers'])


class Neck(nn.Module):
    """A convolution whose output is returned, and read by the next one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.neck = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.neck(torch.relu(self.stem(x)))
        return self.head(x), x


def test_features_that_are_returned_run_in_integers(quantized, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12)
    report = export_onnx(
        quantized(Neck().eval(), [x]),
        (x,),
        tmp_path / 'm.onnx',
        input_names=['x'],
        output_names=['y', 'features'],
    )
    assert report.checks['float_layers'] == []
    assert report.added['features'].startswith('that of head')
