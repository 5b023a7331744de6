"""A detector with learned queries, in plain torch."""

import pytest
import torch
from torch import nn


class Queries(nn.Module):
    """Learned queries read an image through decoder layers.

    Constant are ``layers.0.self_attn``, ``place`` and, though an image
    reaches it, ``behind``: its ReLU is never above 0.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(5, 16))
        self.place = nn.Linear(16, 2)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
            for _ in range(2)
        )
        self.dead = nn.Linear(16, 4)
        self.behind = nn.Linear(4, 2)
        self.size = nn.Linear(1, 2)
        self.head = nn.Linear(16, 2)
        nn.init.constant_(self.dead.bias, -1e6)

    def forward(self, images):
        memory = self.stem(images).flatten(2).transpose(1, 2)
        x = self.queries.expand(len(images), -1, -1)
        place = self.place(x)
        for layer in self.layers:
            x = layer(x, memory)
        behind = self.behind(self.dead(memory.mean(dim=1)).relu())
        # Rows of the image: the same for all of one size.
        size = self.size(torch.tensor([[float(images.shape[2])]]))
        return self.head(x) + place + behind[:, None] + size


@pytest.fixture
def queries():
    torch.manual_seed(0)
    return Queries().eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 16, 24, generator=generator) for _ in range(2)]
