"""Attention in steps against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from taskptq.modules.fused_attention import SIGNATURE, attend

MASK = torch.tensor([[True, False, True], [True, True, True]])


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'scale': 0.3},
        {'attn_mask': MASK},
        {'attn_mask': torch.zeros(2, 3).masked_fill(~MASK, -1e9)},
        {'is_causal': True},
    ],
)
def test_steps_are_torchs_attention(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 4) for n in (2, 3, 3))
    given = SIGNATURE.bind(q, k, value=v, **settings)
    given.apply_defaults()
    found = attend(None, None, None, None, **given.arguments)
    expected = F.scaled_dot_product_attention(q, k, v, **settings)
    torch.testing.assert_close(found, expected)


def test_each_operand_passes_its_quantizer() -> None:
    seen = []

    def note(name: str) -> Any:
        return lambda x: (seen.append((name, tuple(x.shape))), x)[1]

    q, k, v = torch.ones(2, 4), torch.ones(3, 4), torch.ones(3, 5)
    given = SIGNATURE.bind(q, k, v)
    given.apply_defaults()
    attend(*map(note, ('q', 'k', 'softmax', 'v')), **given.arguments)
    assert seen == [
        ('q', (2, 4)),
        ('k', (3, 4)),
        ('softmax', (2, 3)),
        ('v', (3, 5)),
    ]
