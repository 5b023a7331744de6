import pytest
import torch
from torch.nn import functional

from taskptq.export.onnx.gates import choose_gates, gate_precision


def samples(scale):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 16, 16) * torch.tensor(scale).view(4, 1, 1)
    return [x], [functional.silu(x)]


def test_channels_of_one_range_are_precise_and_of_many_are_not():
    even = gate_precision(*samples([2.0, 2, 2, 2]))
    odd = gate_precision(*samples([0.05, 2, 20, 60]))
    assert even > 30
    assert odd < even - 10


def test_the_estimate_is_what_rounding_gives():
    (x,), (y,) = samples([1.0, 2, 3, 4])
    low, high = x.clamp(min=-8).aminmax()
    step = (high - low) / 255
    y_hat = functional.silu((x / step).round() * step)
    # The output is rounded as well.
    step = (y.max() - y.min()) / 255
    y_hat = (y_hat / step).round() * step
    noise = (y_hat - y).square().mean((0, 2, 3)) / y.square().mean((0, 2, 3))
    expected = float(-10 * noise.mean().log10())
    assert gate_precision([x], [y]) == pytest.approx(expected, abs=2)


def test_only_gates_above_the_limit_are_chosen():
    x, y = samples([2.0, 2, 2, 2])
    given = {'a': x, 'b': y}
    assert list(choose_gates({'a': 'b'}, given, limit=20)) == ['a']
    assert choose_gates({'a': 'b'}, given, limit=90) == {}
