"""Where distillation is attached to a model."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from taskptq.qat.distillation import Distillation, DistillationConfig


class Preprocessor(nn.Module):
    def forward(self, data, training=False):
        raise AssertionError('the images are preprocessed already')


class Plain(nn.Module):
    """A model whose loss is a mode of its forward."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = Preprocessor()
        self.neck = nn.Conv2d(3, 4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor', *, scale=1.0):
        out = self.neck(inputs)
        if mode == 'loss':
            return {'loss_own': scale * out.mean()}
        return out


class Classic(Plain):
    def loss(self, inputs, data_samples, *, scale=1.0):
        return {'loss_own': scale * self.neck(inputs).mean()}


@pytest.mark.parametrize('kind', [Plain, Classic])
def test_the_loss_of_a_model_gets_terms(kind):
    student, teacher = kind(), kind()
    views = [dict(taps='neck', loss='squared_feature')]
    added = Distillation(
        student, teacher, config=DistillationConfig.from_dict({'views': views})
    )
    assert not added.wants_batches
    x = torch.randn(2, 3, 4, 4)

    def run():
        if kind is Classic:
            return student.loss(x, [], scale=2.0)
        return student(x, [], mode='loss', scale=2.0)

    own = run()['loss_own']
    added.attach()
    found = run()
    assert torch.equal(found['loss_own'], own)
    assert found['loss_squared_feature'] > 0
    if kind is Plain:
        assert torch.equal(student(x), student.neck(x))
    added.detach()
    assert list(run()) == ['loss_own']
    assert not {'loss', 'forward'} & vars(student).keys()
