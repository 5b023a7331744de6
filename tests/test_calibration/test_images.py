"""Images of one color are counted in every form that batches have."""

import pytest
import torch

from taskptq.calibration.images import constant_images

PLAIN = torch.full((3, 4, 4), 7, dtype=torch.uint8)
VARIED = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)


@pytest.mark.parametrize(
    ('batch', 'expected'),
    [
        (torch.stack([PLAIN, VARIED]), (1, 2)),
        ([PLAIN, PLAIN, VARIED], (2, 3)),
        ({'inputs': [PLAIN, VARIED], 'data_samples': [1, 2]}, (1, 2)),
        ({'inputs': torch.stack([VARIED])}, (0, 1)),
        ({'path': 'a.png'}, (0, 0)),
        (torch.zeros(2, 5, 8), (0, 0)),
        ([torch.zeros(3, 1, 1)], (0, 1)),
        ('a.png', (0, 0)),
    ],
)
def test_constant_images(batch, expected):
    assert constant_images([batch]) == expected


def test_batches_add_up():
    assert constant_images([[PLAIN], [VARIED], [PLAIN]]) == (2, 3)
