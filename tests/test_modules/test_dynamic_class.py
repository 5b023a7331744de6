import copy
import pickle

import torch
from torch import nn

from taskptq.core import quantizing
from taskptq.modules import QuantLinear, QuantWindowMSA, counterpart_class
from taskptq.testing import TinyWindowAttention


class HostLinear(nn.Linear):
    """Stands for a host's subclass."""

    def note(self):
        return 'host'


def test_own_class_is_used_as_it_is():
    assert counterpart_class(QuantLinear, nn.Linear) is QuantLinear


def test_class_is_made_once_and_is_both():
    cls = counterpart_class(QuantLinear, HostLinear)
    assert cls is counterpart_class(QuantLinear, HostLinear)
    assert issubclass(cls, QuantLinear)
    assert issubclass(cls, HostLinear)
    assert cls.__name__ == 'QuantHostLinear'
    assert cls.forward is QuantLinear.forward


def test_methods_and_attributes_of_the_host_stay(lab):
    cls = counterpart_class(QuantLinear, HostLinear)
    module = HostLinear(3, 4)
    module.mark = 7
    quant = cls.from_float(module, scheme=lab.scheme())
    assert quant.note() == 'host'
    assert quant.mark == 7


def test_copy_and_pickle(lab):
    cls = counterpart_class(QuantWindowMSA, TinyWindowAttention)
    module = TinyWindowAttention(8, num_heads=2, window_size=(2, 2))
    quant = cls.from_float(module, scheme=lab.scheme())
    lab.swap_linears(quant, lab.scheme())
    x = torch.randn(3, 4, 8)
    lab.calibrate(quant, lambda m: m(x))
    for twin in (copy.deepcopy(quant), pickle.loads(pickle.dumps(quant))):
        assert type(twin) is cls
        assert twin.qkv.weight is not quant.qkv.weight
        assert list(twin.state_dict()) == list(quant.state_dict())
        with quantizing(quant), quantizing(twin):
            assert torch.equal(twin(x), quant(x))
