import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from taskptq.engine.raw_outputs import image_axes, make_part
from taskptq.engine.traced_sizes import TracedInt, traced_sizes

pytest.importorskip('onnxruntime', reason='needs taskptq[onnx]')

from taskptq.engine.onnx_export import check_free_sizes
from taskptq.export.onnx import export_onnx
from taskptq.export.runtime import OnnxFileError

WINDOWS = '''
from torch import nn

class Windows(nn.Module):
    """Counts images by their windows, as Swin does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        assert isinstance(x.dim(), int)
        batch, channels, height, width = x.shape
        windows = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
        windows = windows.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, channels)
        windows = self.layer(windows)
        count = int(windows.shape[0] / (height * width / 2 / 2))
        windows = windows.view(count, height // 2, width // 2, 2, 2, -1)
        windows = windows.permute(0, 5, 1, 3, 2, 4).contiguous()
        return windows.view(count, -1, height, width)
'''


@pytest.fixture
def windows():
    """A network whose code lies in a module of its own."""
    module = types.ModuleType('counted_windows')
    sys.modules[module.__name__] = module
    exec(WINDOWS, vars(module))
    torch.manual_seed(0)
    yield module.Windows().eval()
    del sys.modules[module.__name__]


def part_of(network, *, dynamic=False):
    return make_part(
        'network',
        lambda x: {'y': network(x)},
        modules={'network': network},
        inputs={'images': torch.randn(2, 4, 8, 12)},
        axes={'images': image_axes(dynamic=dynamic)},
    )


def export(part, path):
    export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
    )


def test_a_number_of_images_that_code_computes_is_free(windows, tmp_path):
    part, path = part_of(windows), tmp_path / 'm.onnx'
    export(part, path)
    check_free_sizes(part, path)


def test_python_freezes_it_otherwise(windows, tmp_path, monkeypatch):
    # What the stand-in is for.
    monkeypatch.setattr(sys.modules['counted_windows'], 'int', int, False)
    part, path = part_of(windows), tmp_path / 'm.onnx'
    export(part, path)
    with pytest.raises(OnnxFileError, match='batch of network cannot be free'):
        check_free_sizes(part, path)


def test_the_stand_in_is_an_int_for_all_else():
    assert TracedInt('7') == 7
    assert TracedInt('ff', 16) == 255
    assert TracedInt(np.float64(2.9)) == 2
    assert isinstance(3, TracedInt)
    assert not isinstance(3.0, TracedInt)
    assert issubclass(bool, TracedInt)
    found = TracedInt(torch.tensor(-2.7))
    assert found.dtype == torch.int64
    assert found == int(-2.7)


def test_only_a_network_s_own_files_are_changed_and_only_inside(windows):
    module = sys.modules['counted_windows']
    with traced_sizes(nn.Sequential(windows, nn.Linear(1, 1))):
        assert vars(module)['int'] is TracedInt
        assert 'int' not in vars(sys.modules[nn.Linear.__module__])
    assert 'int' not in vars(module)
