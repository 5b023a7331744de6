import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskptq.robustness.names import parse_noises
from taskptq.robustness.switches import ceil_mode, model_noise, upsampling


@pytest.mark.parametrize(
    ('size', 'floor', 'ceil'),
    [(400, 200, 201), (401, 201, 201), (160, 80, 81), (667, 334, 334)],
)
@pytest.mark.parametrize('pool', [nn.MaxPool2d, nn.AvgPool2d])
def test_even_sizes_differ_and_odd_ones_do_not(pool, size, floor, ceil):
    pool = pool(3, 2, 1)
    image = torch.zeros(1, 1, 4, size)
    assert pool(image).shape[-1] == floor
    with ceil_mode(pool) as touched:
        assert pool(image).shape[-1] == ceil
        plain = F.max_pool2d(image, 3, 2, 1)
        assert plain.shape[-1] == ceil
    assert bool(touched.count) == (pool(image).shape[2:] != plain.shape[2:])
    assert pool(image).shape[-1] == floor


def test_pools_of_stride_one_are_untouched():
    pool = nn.MaxPool2d(5, 1, 2)
    with ceil_mode(pool) as touched:
        pool(torch.zeros(1, 1, 8, 8))
    assert not touched.count
    assert 'runs no pool whose output size' in touched.none


def test_upsampling_vectors():
    rows = torch.tensor([0.0, 4, 8, 4]).expand(1, 1, 4, 4)
    usual = nn.Upsample(scale_factor=2, mode='nearest')
    assert usual(rows)[0, 0, 0].tolist() == [0, 0, 4, 4, 8, 8, 4, 4]
    with upsampling('bilinear') as touched:
        found = usual(rows)[0, 0, 0]
    assert found.tolist() == [0, 1, 3, 5, 7, 7, 5, 4]
    assert touched.count == 1
    smooth = nn.Upsample(scale_factor=2, mode='bilinear')
    with upsampling('align-corners'):
        found = smooth(rows)[0, 0, 0]
    wanted = [0, 1.714, 3.429, 5.143, 6.857, 7.429, 5.714, 4]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-3, rtol=0)
    with upsampling('nearest'):
        assert torch.equal(smooth(rows), usual(rows))


def test_what_shrinks_or_is_the_same_stays():
    maps = torch.rand(1, 2, 8, 8)
    with upsampling('bilinear') as touched:
        small = F.interpolate(maps, scale_factor=0.5)
        F.interpolate(maps, size=(16, 16), mode='bilinear')
    assert torch.equal(small, maps[..., ::2, ::2])
    assert not touched.count
    with upsampling('align-corners') as touched:
        F.interpolate(maps, scale_factor=2)
    assert touched.none == 'the model enlarges no map with a smooth mode'
    assert not touched.count


def test_precision_rounds_weights_and_outputs_for_a_while():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(3, 4)
    exact = model(x).detach()
    for name in ('float16', 'bfloat16'):
        with model_noise(model, parse_noises(f'precision={name}')) as counts:
            rounded = model(x).detach()
            dtype = getattr(torch, name)
            assert torch.equal(rounded, rounded.to(dtype).float())
        assert not counts.lacking()
        assert 0 < float((rounded - exact).abs().max()) < 0.05
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )
    assert torch.equal(model(x), exact)


def test_noises_together_say_which_one_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2))
    noises = parse_noises('fog=1+ceil_mode+upsample=bilinear+box_offset')
    with model_noise(model, noises) as counts:
        model(torch.rand(1, 1, 6, 6))
    assert set(counts.by_kind) == {'ceil_mode', 'upsample', 'box_offset'}
    assert set(counts.lacking()) == {'ceil_mode', 'box_offset'}
