"""What holds for every lane head, whatever it predicts."""

import numpy as np
import torch
from torch import nn

from lane_detection.testing import lane_sample


def check_decode_is_pure(model, size, monkeypatch):
    """``decode`` calls no module, changes nothing, and repeats itself."""
    sample = lane_sample([], img_shape=size)
    outputs = model(torch.rand(1, 3, *size), mode='tensor')
    before = {name: value.clone() for name, value in outputs.items()}

    def forbidden(*args, **kwargs):
        raise AssertionError('decode called a module')

    monkeypatch.setattr(nn.Module, '__call__', forbidden)
    first, second = (
        model.decode(outputs, [sample.metainfo])[0] for _ in range(2)
    )
    assert all(torch.equal(outputs[name], before[name]) for name in outputs)
    for a, b in zip(first.points, second.points, strict=True):
        assert np.array_equal(a, b)


def check_proxy(model, size):
    """Weights in [0, 1] for each named head, which broadcast to it."""
    outputs = model(torch.rand(2, 3, *size), mode='tensor')
    proxy = model.head.foreground_proxy(outputs)
    assert set(proxy) == set(model.head_names)
    for name, weight in proxy.items():
        assert not weight.requires_grad
        assert 0 <= weight.min() <= weight.max() <= 1
        assert (
            torch.broadcast_shapes(weight.shape, outputs[name].shape)
            == outputs[name].shape
        )
