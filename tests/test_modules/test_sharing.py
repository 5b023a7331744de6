import pytest
import torch
from torch import nn

from taskptq.core import quantizing
from taskptq.modules import (
    Scheme,
    SharedInputs,
    same_tensor,
    share_inputs,
)


class PairMixin(SharedInputs):
    """Two projections of one input."""

    def __init__(self):
        nn.Module.__init__(self)
        self.left = nn.Linear(4, 2)
        self.right = nn.Linear(4, 3)

    def shared_inputs(self):
        return {'input_quantizer': ('left', 'right')}

    def forward(self, x):
        return self.project('input_quantizer', x)


def make_pair(lab, *, scheme=None, children=None):
    quant = PairMixin.from_float(PairMixin(), scheme=scheme or lab.scheme())
    return lab.swap_linears(quant, children or lab.scheme())


def test_same_tensor():
    x = torch.randn(4, 5)
    assert same_tensor(x, x)
    assert same_tensor(x.t(), x.t())
    assert not same_tensor(x, x.clone())
    assert not same_tensor(x[:2], x[2:])
    assert not same_tensor(x, x.t())
    y = x.requires_grad_()
    assert not same_tensor(y, y.detach())
    assert not same_tensor(torch.empty(0), torch.empty(0))


def test_one_quantizer_for_all_readers(lab):
    pair = make_pair(lab)
    x = torch.randn(5, 4)
    lab.calibrate(pair, lambda m: m(x))
    with quantizing(pair):
        counts = lab.fired(pair, lambda m: m(x))
        left, right = pair(x)
        x_hat = pair.input_quantizer(x)
        assert torch.equal(left, pair.left(x_hat, input_quantized=True))
        assert torch.equal(right, pair.right(x_hat, input_quantized=True))
    assert counts == {
        'input_quantizer': 1,
        'left.weight_quantizer': 1,
        'right.weight_quantizer': 1,
    }


def test_readers_lose_their_own_quantizers(lab):
    quant = PairMixin.from_float(PairMixin(), scheme=lab.scheme())
    model = nn.Sequential(quant)
    from taskptq.modules import QuantLinear

    quant.left = QuantLinear.from_float(quant.left, scheme=lab.scheme())
    assert share_inputs(model) == ['0.left.input_quantizer']
    assert share_inputs(model) == []
    assert quant.left.input_quantizer is None


def test_a_float_reader_reads_float(lab):
    quant = PairMixin.from_float(PairMixin(), scheme=lab.scheme(activation=2))
    x = torch.randn(5, 4)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        left, _ = quant(x)
    assert torch.equal(left, quant.left(x))


@pytest.mark.parametrize('bits', [2, 8])
def test_readers_keep_theirs_if_the_owner_is_float(bits, lab):
    pair = make_pair(
        lab, scheme=Scheme(), children=lab.scheme(activation=bits)
    )
    x = torch.randn(5, 4)
    lab.calibrate(pair, lambda m: m(x))
    with quantizing(pair):
        counts = lab.fired(pair, lambda m: m(x))
    assert counts['left.input_quantizer'] == 1
    assert counts['right.input_quantizer'] == 1
