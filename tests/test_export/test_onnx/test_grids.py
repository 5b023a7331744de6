import pytest
import torch

from taskptq.export.onnx.grids import (
    choose_grid,
    search_grid,
    share_zero_points,
    squared_error,
)
from taskptq.prepare.grid_plan import SharedGrid


def test_of_several_grids_the_one_of_least_error_is_taken():
    torch.manual_seed(0)
    x = torch.rand(1, 4, 8, 8)
    wide = search_grid([x * 10], name='wide')
    near = search_grid([x], name='near')
    found = choose_grid([wide, near], [x], name='new', shared=SharedGrid())
    assert found is near
    assert squared_error(near, x) < squared_error(wide, x)


def test_a_tensor_that_a_gate_reads_ends_where_the_gate_is_flat():
    x = torch.linspace(-80, 8, 4096).reshape(1, 1, 64, 64)
    shared = SharedGrid(gated=True)
    found = choose_grid([], [x], name='new', shared=shared, whole=True)
    low = (found.quant_min - found.zero_point) * found.scale
    assert float(low) == pytest.approx(-8, abs=0.1)


def test_channels_share_a_zero_point_and_keep_their_ranges():
    x = torch.randn(1, 4, 8, 8) * torch.tensor([1.0, 2, 3, 9]).view(-1, 1, 1)
    grid = search_grid([x], name='a', per_channel=True)
    grids = {'a': grid}
    assert share_zero_points(grids) == ['a']
    changed = grids['a']
    assert len(set(changed.zero_point.tolist())) == 1
    reach = (changed.quant_max - changed.zero_point) * changed.scale
    assert bool((reach >= x.amax((0, 2, 3)) - changed.scale).all())


@pytest.mark.parametrize(
    ('shape', 'scales'), [((2, 3, 4, 4), 3), ((1, 2, 3, 4, 4), 1)]
)
def test_only_channels_of_maps_have_scales_of_their_own(shape, scales):
    found = choose_grid(
        [], [torch.rand(shape)], name='new', shared=SharedGrid(free=True)
    )
    assert found.scale.numel() == scales
