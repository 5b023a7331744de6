"""Losses of reconstruction, and the context they receive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskptq.core.settings import Flag

Outputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ReconContext:
    """What a ReconLoss may read besides the two outputs.

    Args:
        unit: Qualified name of the unit; '' is the whole network.
        step: Step of this unit, from 0.
        num_steps: Planned steps of this unit.
        image_ids: Indices of the batch's images in the calibration set, if
            rows are images.
        heads_float: Named head outputs of the float model (network scope).
        heads_quant: Named head outputs of the quantized model.
        features_float: Other named outputs of the float model.
        features_quant: Other named outputs of the quantized model.
        adapter: The model's adapter.
    """

    unit: str
    step: int
    num_steps: int
    image_ids: tuple[int, ...] = ()
    heads_float: Mapping[str, Tensor] = field(default_factory=dict)
    heads_quant: Mapping[str, Tensor] = field(default_factory=dict)
    features_float: Mapping[str, Tensor] = field(default_factory=dict)
    features_quant: Mapping[str, Tensor] = field(default_factory=dict)
    adapter: Any = None


# A loss is also called outside of steps, without gradients, to evaluate a
# unit: before the first step, and for `keep_better` after the last.
ReconLoss = Callable[[Outputs, Outputs, ReconContext], Tensor]


@dataclass(frozen=True, kw_only=True)
class NetworkProbe:
    """What a network-wise loss may read outside of its steps.

    A loss with a method ``begin`` receives one before the first step and may
    keep it; ``run`` always uses the current model.

    Args:
        heads_float: Named head outputs of the float model, one mapping per
            calibration batch.
        metas: Metainfo of each image of each batch.
        run: Maps the number of a batch to the named head outputs of the
            current quantized model, without gradient and random drop.
        adapter: The model's adapter.
        batches: The collated calibration batches, for losses that run
            another model on them; none where images vary at each step.
    """

    heads_float: Sequence[Mapping[str, Tensor]]
    metas: Sequence[Sequence[Mapping[str, Any]]]
    run: Callable[[int], Mapping[str, Tensor]]
    adapter: Any
    batches: Sequence[Any] = ()


class MSEReconLoss:
    """Mean squared error over the float output's power, summed over outputs.

    Dividing by mean(y^2) makes the loss a noise-to-signal ratio: one recipe
    then fits units of any scale, and several outputs weigh the same.

    Args:
        normalize: Divide by the float output's power.
    """

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = Flag().read(normalize, name='normalize')

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss; shapes of both outputs are equal."""
        del context
        if isinstance(quant_out, Tensor):
            assert isinstance(float_out, Tensor)
            return self._single(quant_out, float_out)
        assert isinstance(float_out, dict)
        losses = [
            self._single(quant_out[name], float_out[name])
            for name in quant_out
        ]
        return torch.stack(losses).sum()

    def _single(self, quant_out: Tensor, float_out: Tensor) -> Tensor:
        if not quant_out.numel():
            return quant_out.float().sum()  # the mean of nothing is NaN
        error = torch.nn.functional.mse_loss(
            quant_out.float(), float_out.float()
        )
        if not self.normalize:
            return error
        return error / float_out.float().square().mean().clamp(min=1e-12)


def adapter_of(loss: ReconLoss, adapter: Any) -> Any:
    """Return the adapter that names the outputs which a loss compares.

    Args:
        loss: With ``by_query = True`` it compares the queries of a decoder.
        adapter: The model's adapter. If it names whole outputs, its
            ``by_query()`` returns one that names them query by query and
            layer by layer.
    """
    by_query = getattr(adapter, 'by_query', None)
    if by_query is None or not getattr(loss, 'by_query', False):
        return adapter
    return by_query()
