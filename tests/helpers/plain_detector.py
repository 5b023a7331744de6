"""A small detector in torchvision's manner, of torch layers alone."""

import torch
from torch import nn


def conv(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def images(seed, count=2):
    """Images of different sizes, each (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(3, 32 + 8 * i, 40, generator=generator)
        for i in range(count)
    ]


class PlainDetector(nn.Module):
    """Pads a list of images, and returns a dict of boxes for each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), conv(8, 16), conv(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, images, targets=None):
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        batch = images[0].new_zeros(len(images), 3, height, width)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        features = self.body(batch).flatten(2).transpose(1, 2)
        found = self.head(features)
        results = []
        for boxes, scores in zip(
            found[..., :4], found[..., 4].sigmoid(), strict=True
        ):
            best = scores.topk(5).indices
            results.append({'boxes': boxes[best], 'scores': scores[best]})
        return results
