"""A small network with one wild tensor, and a plain adapter."""

import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core.switches import quantizers
from taskptq.prepare import QConfig, prepare


class PlainAdapter:
    """Every output counts the same."""

    def forward_heads(self, model, batch):
        out = model(batch)
        return out if isinstance(out, dict) else {'output': out}

    def output_weights(self, heads):
        return {name: torch.ones(()) for name in heads}


class WildNet(nn.Module):
    """Convolutions of each kind; one channel of a depthwise input is huge.

    The depthwise weights undo it, so that all channels matter alike.
    """

    def __init__(self, wild: float = 200.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.spatial = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.stem.weight[0] *= wild
            self.stem.bias[0] *= wild
            self.depthwise.weight[0] /= wild

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.depthwise(x)
        x = x * torch.sigmoid(x)
        x = nn.functional.silu(self.pointwise(x))
        x = torch.relu_(self.spatial(x))
        return self.head(x)


def prepared(model, batches, **qconfig):
    settings = {'edge_bits': None, **qconfig}
    prepare(model.eval(), QConfig.from_dict(settings))
    calibrate(model, batches, forward=lambda m, x: m(x))
    return model


def switches(model):
    """What a measurement has to restore."""
    return (
        [(n, q.enabled, q.observing) for n, q in quantizers(model)],
        [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()],
        [m.training for m in model.modules()],
    )
