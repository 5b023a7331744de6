import torch

from taskptq.prepare.common_zero import common_zero_point


def test_every_channel_keeps_its_range():
    torch.manual_seed(0)
    low, high = -torch.rand(16) * 3, torch.rand(16) * 50
    scale, point = common_zero_point(low, high, quant_min=0, quant_max=255)
    assert len(set(point.tolist())) == 1
    assert bool(((0 - point) * scale <= low + 1e-5).all())
    assert bool(((255 - point) * scale >= high - 1e-4).all())


def test_it_costs_least_of_all_zero_points():
    low = torch.tensor([-0.28, -0.28])
    high = torch.tensor([1.0, 100.0])
    best = (high - low) / 255

    def cost(scale):
        return float((scale / best).square().sum())

    scale, _ = common_zero_point(low, high, quant_min=0, quant_max=255)
    others = []
    for z in range(1, 255):
        others.append(cost(torch.maximum(-low / z, high / (255 - z))))
    assert cost(scale) <= min(others) * (1 + 1e-6)


def test_channels_that_are_all_zero_have_scale_one():
    scale, point = common_zero_point(
        torch.zeros(2), torch.tensor([0.0, 5.1]), quant_min=0, quant_max=255
    )
    assert scale.tolist() == [1.0, torch.tensor(5.1).div(255).item()]
    assert point.tolist() == [0, 0]


def test_one_channel_is_as_if_alone():
    scale, point = common_zero_point(
        torch.tensor([-1.0]),
        torch.tensor([1.0]),
        quant_min=-128,
        quant_max=127,
    )
    assert abs(int(point)) <= 1
    assert float(scale) < 2 / 255 * 1.01
