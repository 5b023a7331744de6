"""Network scope: named heads of the adapter, all layers at once."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.calibration.capture import batch_length
from taskptq.calibration.config import ReconstructionConfig
from taskptq.calibration.losses import NetworkProbe, ReconLoss
from taskptq.calibration.progress import RunProgress
from taskptq.calibration.train_unit import Minibatch, UnitResult, train_unit
from taskptq.core import dropping, float_only, quantizing
from taskptq.prepare.blocks import Unit


class NetworkData:
    """Named float outputs of all batches, and minibatches of them.

    A minibatch is a calibration batch.

    Args:
        model: Swapped and calibrated model.
        batches: Calibration batches (this rank's share).
        adapter: The model's adapter. If it has ``forward_like``, with the
            arguments of ``forward_heads`` and the float outputs ``heads``,
            the quantized model runs through that: outputs for each instance
            are then computed for the instances of the float model.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], adapter: Any
    ) -> None:
        self.model = model
        self.batches = batches
        self.adapter = adapter
        self.targets: list[dict[str, Tensor]] = []
        self.metas: list[list[Mapping[str, Any]]] = []
        self.lengths: list[int] = []
        with calibration_mode(model), float_only(model):
            for batch in batches:
                heads = adapter.forward_heads(model, batch)
                self.targets.append({k: v.detach() for k, v in heads.items()})
                self.lengths.append(batch_length(batch))
                self.metas.append(batch_metas(batch))

    def draw(self) -> Minibatch:
        """Return a random batch."""
        number = int(torch.randint(len(self.batches), ()))
        first = sum(self.lengths[:number])
        return Minibatch(
            run=lambda: self.run(number),
            target=self.targets[number],
            image_ids=tuple(range(first, first + self.lengths[number])),
        )

    def run(self, number: int) -> dict[str, Tensor]:
        """Run the model as it is switched now on one batch."""
        batch = self.batches[number]
        forward_like = getattr(self.adapter, 'forward_like', None)
        if forward_like is None:
            heads = self.adapter.forward_heads(self.model, batch)
        else:
            heads = forward_like(
                self.model, batch, heads=self.targets[number]
            )
        return dict(heads)

    def run_quantized(self, number: int) -> dict[str, Tensor]:
        """Run the quantized model as it is now, without drop or gradient."""
        with (
            calibration_mode(self.model),
            quantizing(self.model),
            dropping(self.model, drop_prob=0.0),
        ):
            return self.run(number)

    def probe(self) -> NetworkProbe:
        """Return the view that a loss gets."""
        return NetworkProbe(
            heads_float=self.targets,
            metas=self.metas,
            run=self.run_quantized,
            adapter=self.adapter,
        )


def train_network(
    model: nn.Module,
    batches: Sequence[Any],
    config: ReconstructionConfig,
    *,
    loss: ReconLoss,
    adapter: Any,
    progress: bool = True,
    on_trained: Callable[[Unit], None] | None = None,
) -> UnitResult:
    """Train all layers at once on the adapter's heads.

    Args:
        model: Swapped and calibrated model; roundings that are finished
            already are taken up again.
        batches: Calibration batches (this rank's share).
        config: Settings.
        loss: Reconstruction loss.
        adapter: The model's adapter.
        progress: Show a live display where there is a terminal.
        on_trained: Called with the unit, its roundings soft.

    Raises:
        ValueError: If the rounding cannot be learned.
    """
    if config.rounding == 'gptq':
        raise ValueError(
            "rounding='gptq' solves layer by layer: choose scope='block' "
            'without network_steps'
        )
    start = time.perf_counter()
    data = NetworkData(model, batches, adapter)
    begin = getattr(loss, 'begin', None)
    if begin is not None:
        begin(data.probe())
    with RunProgress(1, config.steps, enabled=progress) as display:
        display.start_unit(0, 'network')
        result = train_unit(
            Unit('', model),
            data.draw,
            config,
            loss=loss,
            adapter=adapter,
            on_step=display.step,
            on_trained=on_trained,
        )
    result.seconds = time.perf_counter() - start
    return result


def batch_metas(batch: Any) -> list[Mapping[str, Any]]:
    """Return the metainfo of each image of a collated batch.

    Args:
        batch: Collated batch; without ``data_samples`` the metas are empty.
    """
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    if samples is None:
        return [{} for _ in range(batch_length(batch))]
    return [dict(getattr(sample, 'metainfo', sample)) for sample in samples]
