"""Grid heads over anchors: layers sized by the coder, channels in order."""

import pytest
import torch

pytest.importorskip('mmdet')

import tiny_detectors as tiny

from taskptq.models.grid.head import GridBoxCoder

LOSS = dict(type='taskptq.GridLoss')
# name -> zoo model, path of its head, class of its head, regression layer
CASES = {
    'rpn': ('faster', 'rpn_head', 'taskptq.GridRPNHead', 'rpn_reg'),
    'retina': (
        'retinanet',
        'bbox_head',
        'taskptq.GridRetinaHead',
        'retina_reg',
    ),
}


@pytest.fixture(params=CASES)
def make(request):
    zoo_name, path, kind, layer = CASES[request.param]

    def build(**changes):
        settings = dict(type=kind, loss_bbox=LOSS, **changes)
        head = tiny.build(zoo_name, {path: settings}).get_submodule(path)
        return head, head.get_submodule(layer)

    return build


@pytest.mark.parametrize(
    ('grid', 'points'),
    [(None, 11), (dict(alpha=4.0, beta=0.5, num_intervals=6), 7)],
)
def test_layer_has_all_logits_of_each_anchor(make, grid, points):
    changes = {} if grid is None else dict(grid=grid)
    head, layer = make(**changes)
    assert head.box_grid.num_points == points
    assert isinstance(head.bbox_coder, GridBoxCoder)
    assert layer.out_channels == head.num_base_priors * 4 * points


def test_a_logit_moves_its_own_coordinate(make):
    """Channel (anchor 4 + coordinate) (n + 1) + point, as decoded."""
    head, _ = make()
    points, coordinate = head.box_grid.num_points, 2
    priors = torch.tensor([[10.0, 10.0, 26.0, 26.0]])
    logits = torch.zeros(1, 4 * points)
    centered = head.bbox_coder.decode(priors, logits)
    # The last point of the grid: a wider box, and nothing else.
    logits[0, coordinate * points + points - 1] = 50.0
    moved = head.bbox_coder.decode(priors, logits)
    torch.testing.assert_close(centered, priors)
    torch.testing.assert_close(moved[0, 1::2], priors[0, 1::2])
    width = 16 * torch.tensor(2.0).exp()
    torch.testing.assert_close(moved[0, 2] - moved[0, 0], width)
