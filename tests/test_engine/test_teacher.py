"""A teacher runs in eval mode and float, and is never trained."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')

from taskptq.engine.teacher import Teacher, build_teacher_model


class Adapter:
    def __init__(self):
        self.modes = []

    def forward_heads(self, model, batch):
        self.modes.append((model.training, torch.is_grad_enabled()))
        return {'cls': model(batch)}


def test_outputs_of_each_batch():
    model, adapter = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), Adapter()
    teacher = Teacher(model.train(), adapter, name='other')
    batches = [torch.randn(2, 3), torch.randn(1, 3)]
    found = teacher.run(batches, device=torch.device('cpu'))
    assert adapter.modes == [(False, False)] * 2
    assert not any(p.requires_grad for p in model.parameters())
    for heads, batch in zip(found, batches, strict=True):
        torch.testing.assert_close(heads['cls'], model(batch))


@pytest.mark.parametrize(
    ('settings', 'error', 'said'),
    [
        (dict(config='a.py'), ValueError, 'give config and checkpoint'),
        (
            dict(config='a.py', checkpoint='a.pth', bits=4),
            ValueError,
            'give config and checkpoint',
        ),
        (
            dict(config='nowhere.py', checkpoint='a.pth'),
            FileNotFoundError,
            r'nowhere\.py',
        ),
    ],
)
def test_settings_are_checked_before_anything_is_read(settings, error, said):
    with pytest.raises(error, match=said):
        build_teacher_model(settings)


def test_layers_become_float_counterparts(float_checkpoint, tiny_path):
    """Their features inside attentions can then be read."""
    import tiny_task

    from taskptq.core.switches import quantizers
    from taskptq.modules import quant_modules

    model = build_teacher_model(
        dict(config=str(tiny_path), checkpoint=str(float_checkpoint))
    )
    assert quant_modules(model)
    assert not any(q.enabled for _, q in quantizers(model))
    plain = tiny_task.TinyNet().eval()
    plain.load_state_dict(torch.load(float_checkpoint)['state_dict'])
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, mode='tensor'), plain(x, mode='tensor')
        )
