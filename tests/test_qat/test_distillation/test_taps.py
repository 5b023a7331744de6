"""Where features are read."""

import pytest
import torch
from torch import nn

from taskptq.core import float_only
from taskptq.prepare import QConfig, prepare
from taskptq.qat.distillation.taps import find_taps, recording
from taskptq.testing import TinyWindowAttention


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.neck = nn.Conv2d(4, 2, 1)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        # Some hosts call a head's forward past its hooks.
        return self.head.forward(self.neck(self.backbone(x)))


@pytest.fixture
def attention():
    model = nn.Sequential(
        TinyWindowAttention(8, num_heads=2, window_size=(4, 4))
    )
    prepare(model, QConfig.from_dict({}))
    return model


def test_parts_patterns_and_logits():
    model = Net()
    assert list(find_taps(model, ['neck'])) == ['neck']
    assert list(find_taps(model, ['backbone.*'])) == [
        'backbone.0',
        'backbone.1',
    ]
    assert list(find_taps(model, ['logits'])) == ['head']
    inside = find_taps(model, ['re:.*'], within='backbone*')
    assert list(inside) == ['backbone', 'backbone.0', 'backbone.1']


def test_operands_of_attention(attention):
    found = find_taps(attention, ['query_key', 'attention', 'attended'])
    kinds = [name.rpartition('.')[2] for name in found]
    assert sorted(kinds) == ['attended', 'key', 'query', 'softmax']


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('query', "'query' .* attentions with a query_quantizer"),
        ('attended', 'quantized counterpart'),
        ('necks', 'modules of that name'),
    ],
)
def test_a_tap_that_finds_nothing_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        find_taps(Net(), [name])
    with pytest.raises(ValueError, match="within 'head'"):
        find_taps(Net(), ['neck'], within='head')


def test_outputs_are_recorded_call_by_call():
    model, x = Net(), torch.randn(1, 3, 2, 2)
    with recording(find_taps(model, ['neck', 'head'])) as found:
        first = model(x)
        model(2 * x)
    assert [len(calls) for calls in found.values()] == [2, 2]
    assert found['head'][0] is first
    assert found['neck'][0].grad_fn is not None
    # Nothing of it stays on the model.
    assert 'forward' not in vars(model.neck)
    model(x)
    assert len(found['neck']) == 2


def test_operands_are_recorded_before_their_quantizers(attention):
    x = torch.randn(2, 16, 8)
    taps = find_taps(attention, ['attention'])
    with float_only(attention), recording(taps) as found:
        attention(x)
    (weights,) = found['0.softmax']
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
