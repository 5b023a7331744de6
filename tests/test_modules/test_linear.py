import pytest
import torch
from torch import nn

from taskptq.core import quantizing
from taskptq.modules import QuantLinear, counterpart_class


def test_a_quantized_input_is_not_quantized_again(lab):
    quant = QuantLinear.from_float(nn.Linear(4, 6), scheme=lab.scheme())
    x = torch.randn(3, 4)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(x, input_quantized=True))
        x_hat = quant.input_quantizer(x)
        assert torch.equal(quant(x), quant(x_hat, input_quantized=True))
    assert counts == {'weight_quantizer': 1}


def test_wrapper_of_mmcv(lab):
    wrappers = pytest.importorskip('mmcv.cnn.bricks.wrappers')
    module = wrappers.Linear(4, 6)
    cls = counterpart_class(QuantLinear, type(module))
    quant = cls.from_float(module, scheme=lab.scheme())
    x = torch.randn(2, 3, 4)
    assert torch.equal(quant(x), module(x))
