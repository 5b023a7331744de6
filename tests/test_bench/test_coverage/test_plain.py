"""The independent quantizer."""

from __future__ import annotations

import torch
from torch import nn

from taskptq.bench.coverage.plain import PlainQuantization


def test_operands_are_on_grids_of_8_bits() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.014], [12.7, 0.14]]))
    x = torch.tensor([[2.55, 0.014]])
    with torch.no_grad(), PlainQuantization():
        found = layer(x)
    first = 2.55 * 1.27 + 0.01 * 0.01
    assert torch.allclose(found, torch.tensor([[first, 10 * first]]))


def test_transposed_weights_have_a_scale_per_output_channel() -> None:
    layer = nn.ConvTranspose2d(1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([127.0, 1e-3]).view(1, 2, 1, 1))
    with torch.no_grad(), PlainQuantization():
        found = layer(torch.full((1, 1, 1, 1), 255.0))
    assert torch.allclose(found.flatten(), torch.tensor([127.0, 1e-3]) * 255)


def test_activations_keep_zero_and_other_calls_their_arguments() -> None:
    a = torch.tensor([[-1.0, 0.0, 3.0]])
    with PlainQuantization():
        assert torch.equal(a @ torch.zeros(3, 1), torch.zeros(1, 1))
        assert torch.equal(torch.add(a, 0.001), a + 0.001)
        assert (torch.zeros(0, 3) @ a.T).shape == (0, 1)
