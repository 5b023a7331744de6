"""A user's own attention, block and head: quantized, packed and restored."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from taskptq import hosts
from taskptq.calibration import calibrate
from taskptq.engine.restore import restore_model
from taskptq.export.checkpoint import pack_model
from taskptq.modules import QuantModule
from taskptq.modules.base import Scheme, build_quantizer
from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.reconstruction import freeze, reconstruct
from taskptq.reconstruction.config import ReconstructionConfig

SETTINGS = {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}


class Gate(nn.Module):
    """A layer with a weight that no package knows, (N, C) -> (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.tanh()


class QuantGate(QuantModule):
    """Its counterpart."""

    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}

    def add_quantizers(self, scheme: Scheme) -> None:
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return x @ self.quantized_weight().tanh()


class Step(nn.Module):
    """The block: once in the model, no residual, so only a list names it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = Gate(channels)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gate(x)).relu()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = Step(6)
        self.score = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.step(x))


@pytest.fixture(autouse=True)
def registered(restored_tables: None) -> None:
    hosts.register_counterpart(Gate, QuantGate)
    hosts.register_block(Step)
    hosts.register_output_layer('score', host=Model)


def new_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Model().eval()


def test_registered_parts_are_quantized_packed_and_restored() -> None:
    model, batches = new_model(0), list(torch.randn(4, 8, 6))
    before = model(batches[0])
    config = QConfig.from_dict(SETTINGS)
    report = prepare(model, config, batch=batches[0])
    rows = {row.name: row for row in report.rows}
    assert rows['step.gate'].status == 'quantized'
    assert rows['step.gate'].weight_bits == 4
    assert rows['score'].reason == 'edge layer'
    assert rows['score'].weight_bits == 8
    assert [unit.name for unit in split_blocks(model)] == ['step', 'score']

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)

    calibrate(model, batches, forward=forward)
    settings = ReconstructionConfig.from_dict({'steps': 5, 'batch_size': 4})
    rebuilt = reconstruct(
        model, batches, settings, forward=forward, progress=False
    )
    assert [unit.name for unit in rebuilt.units] == ['step', 'score']
    freeze(model)
    after = model(batches[0])
    assert not torch.equal(after, before)
    recipe = {'qconfig': config.to_dict()}
    payload = pack_model(model, recipe=recipe, meta={}, structure={})
    assert 'step.gate.weight' in payload['weights']

    fresh = new_model(1)
    restore_model(payload, fresh)
    assert torch.equal(fresh(batches[0]), after)
