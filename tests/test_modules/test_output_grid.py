import copy

import pytest
import torch
from torch import nn

from taskptq.core import AffineQuantizer, QuantSpec
from taskptq.modules.output_grid import add_output_grid


def grid():
    quantizer = AffineQuantizer(QuantSpec(num_bits=2))
    quantizer.set_bounds(signed=False)
    quantizer.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    quantizer.enabled = True
    return quantizer


def test_a_copy_has_a_grid_of_its_own():
    model = nn.Sequential(nn.ReLU())
    add_output_grid(model[0], grid())
    twin = copy.deepcopy(model)
    twin[0].output_quantizer.scale.fill_(0.5)
    x = torch.tensor([0.6])
    assert model(x).item() == 1.0
    assert twin(x).item() == 0.5


def test_two_modules_may_share_one_grid_but_none_has_two():
    one, other, shared = nn.ReLU(), nn.ReLU(), grid()
    add_output_grid(one, shared)
    add_output_grid(other, shared)
    assert one.output_quantizer is other.output_quantizer
    with pytest.raises(ValueError, match='already'):
        add_output_grid(one, grid())
