"""Zero paddings of channels-last maps with values of their own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.channel_padding import (
    ChannelPadding,
    pad_channels,
    zero_padding,
)

X = torch.arange(24.0).view(1, 2, 3, 4)


class Padded(nn.Module):
    """Pads maps as it is told."""

    def __init__(self, *pads: int, **options: object) -> None:
        super().__init__()
        self.pads, self.options = pads, options

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads, **self.options)


@pytest.mark.parametrize(
    'pads', [(0, 0), (0, 0, 1, 2), (0, 0, 0, 1, 2, 0), (0, 0, 0, 0, 0, 3)]
)
def test_a_constant_is_padded_as_by_torch(pads: tuple[int, ...]) -> None:
    value = torch.full((4,), 7.0)
    expected = F.pad(X, pads, value=7.0)
    assert torch.equal(pad_channels(X, pads, value=value), expected)


@pytest.mark.parametrize(
    ('args', 'kwargs', 'pads'),
    [
        ((X, (0, 0, 1, 2)), {}, (0, 0, 1, 2)),
        ((X,), {'pad': [0, 0, 1, 2], 'value': 0.0}, (0, 0, 1, 2)),
        ((X, (1, 0, 1, 2)), {}, None),
        ((X, (0, 0, -1, 2)), {}, None),
        ((X, (0, 0, 1, 2), 'reflect'), {}, None),
        ((X, (0, 0, 1, 2)), {'value': 1.0}, None),
        ((X, None), {}, None),
    ],
)
def test_which_paddings_count(
    args: tuple, kwargs: dict, pads: tuple[int, ...] | None
) -> None:
    found = zero_padding(args, kwargs)
    assert (None if found is None else found[1]) == pads


def test_only_zero_paddings_of_all_channels_change() -> None:
    value = torch.tensor([1.0, 2, 3, 4])
    for pads, options, changes in (
        ((0, 0, 1, 0), {}, True),
        ((0, 0, 1, 0), {'value': 5.0}, False),
        ((1, 0), {}, False),
    ):
        model = Padded(*pads, **options)
        expected = model(X)
        padding = ChannelPadding(model, channels=4)
        assert torch.equal(model(X), expected)
        padding.value.copy_(value)
        out = model(X)
        assert torch.equal(out, expected) is not changes
        if changes:
            assert out[0, 0, 0].tolist() == [1, 2, 3, 4]
            assert torch.equal(out[:, :, 1:], X)
        # Other numbers of channels are other maps.
        other = X[..., :3]
        assert torch.equal(model(other), F.pad(other, pads, **options))
        padding.remove()
        assert torch.equal(model(X), expected)
        assert not model.state_dict()


def test_nothing_else_pads_when_a_forward_fails() -> None:
    model = Padded(0, 0, 1, 0, mode='none')
    ChannelPadding(model, channels=4).value.fill_(1.0)
    with pytest.raises(NotImplementedError):
        model(X)
    assert float(F.pad(X, (0, 0, 1, 0))[0, 0, 0, 0]) == 0.0


def test_copies_have_their_own_value() -> None:
    model = Padded(0, 0, 1, 0)
    ChannelPadding(model, channels=4).value.fill_(1.0)
    twin = copy.deepcopy(model)
    twin.channel_pad_value.fill_(2.0)
    assert [float(m(X)[0, 0, 0, 0]) for m in (model, twin)] == [1.0, 2.0]


def test_a_module_gets_one_value() -> None:
    model = Padded(0, 0, 1, 0)
    ChannelPadding(model, channels=4)
    with pytest.raises(ValueError, match='Padded already pads'):
        ChannelPadding(model, channels=4)
