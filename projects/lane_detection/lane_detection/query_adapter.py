"""Outputs of LSTR query by query and layer by layer, as those of a DETR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskptq.engine.adapters import Adapter, uncertainty
from taskptq.engine.detr_adapters import decoder_taps, last_layer, recorded

from .models.lstr_curves import curve_rows

__all__ = ['LaneQueryAdapter']

NUM_ROWS = 36


class LaneQueryAdapter(Adapter):
    """Adapter for objectives on the queries of a LaneDetector with LSTRHead.

    Outputs of each decoder layer, as ``taskptq.engine.detr_adapters`` names
    them: ``cls.{layer}`` (B, Q, 2) logits of no lane and lane,
    ``box.{layer}`` (B, Q, R) x at R rows in fractions of the input's width,
    ``curve.{layer}`` (B, Q, 8) what these are drawn from,
    ``attended.{layer}`` and ``self_attended.{layer}`` (B, Q, C) of a swapped
    model's attentions.

    A model runs in two parts, so that steps on the decoder alone repeat
    neither backbone nor encoder.

    Args:
        model: The detector; the methods also accept a quantized copy of it.
    """

    use_sigmoid = False
    # Queries are lines, x at rows, instead of boxes.
    lines = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head_kinds = {'cls.*': 'confidence', '*': 'regression'}

    def trunk(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run backbone and encoder.

        Args:
            model: Float or quantized model.
            batch: Collated batch.

        Returns:
            Plain inputs of :meth:`forward_from`.
        """
        data = model.data_preprocessor(batch, False)
        memory, position = model.head.encode(
            model.extract_feat(data['inputs'])
        )
        return {'memory': memory, 'position': position}

    def forward_from(
        self,
        model: nn.Module,
        trunk: Mapping[str, Tensor],
        *,
        heads: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run decoder and branches on the outputs of :meth:`trunk`.

        Args:
            model: Float or quantized model.
            trunk: Inputs; not modified.
            heads: Unused: the queries are the same in all models.
        """
        del heads
        taps = decoder_taps(model.head)
        with recorded(taps) as features:
            layers = model.head.read(trunk['memory'], trunk['position'])
        outputs: dict[str, Tensor] = {}
        for number, hidden in enumerate(layers):
            found = model.head.outputs_of(hidden)
            rows = curve_rows(found['curve'], num_rows=NUM_ROWS)
            outputs[f'cls.{number}'] = found['logits']
            outputs[f'box.{number}'] = rows
            outputs[f'curve.{number}'] = found['curve']
        return {**outputs, **{name: features[name] for name in taps}}

    def forward_heads(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run a model up to its queries' outputs, without post-processing."""
        return self.forward_from(model, self.trunk(model, batch))

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight each query by its probability of a lane in the layer."""
        ones = super().foreground_proxy(heads)
        return {
            name: (
                heads[logits].softmax(dim=-1)[..., 1:]
                if (logits := f'cls.{name.partition(".")[2]}') in heads
                else ones[name]
            )
            for name in heads
        }

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh the last layer's outputs, which are all that is decoded."""
        last = last_layer(heads)
        chances = heads[f'cls.{last}'].softmax(dim=-1)
        return {
            f'cls.{last}': uncertainty(chances),
            f'box.{last}': chances[..., 1:],
        }

    def soft_lines(self, heads: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return x at rows (B, Q, R) and the probability of a lane (B, Q)."""
        last = last_layer(heads)
        chances = heads[f'cls.{last}'].softmax(dim=-1)
        return heads[f'box.{last}'], chances[..., 1]

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return the lanes of each image, in pixels of the original."""
        last = last_layer(heads)
        outputs = {
            'logits': heads[f'cls.{last}'],
            'curve': heads[f'curve.{last}'],
        }
        return list(self.model.head.decode(outputs, metas))
