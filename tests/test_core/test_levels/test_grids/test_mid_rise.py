"""Equal steps without a zero."""

import torch

from taskptq.core.levels.grids.mid_rise import MidRise
from taskptq.core.levels.grids.two_plane import TwoPlane


def test_levels_are_two_planes_of_halves():
    ours, _ = MidRise().ordered(torch.tensor([[0.8]]))
    theirs, _ = TwoPlane().ordered(torch.tensor([[0.8, 0.4]]))
    torch.testing.assert_close(ours, theirs)


def test_integers_times_their_unit_are_the_levels_bit_for_bit():
    sizes = torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
    integers, unit = MidRise().integers()
    values = torch.tensor(integers).float() * (sizes * unit)
    assert torch.equal(values, MidRise().ordered(sizes)[0])
