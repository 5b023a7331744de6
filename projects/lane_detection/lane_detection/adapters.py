"""Adapters of lane detectors for taskptq's network-wise objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskptq.engine.adapters import Adapter
from taskptq.methods.selective_focus.lane_distortion import lane_disagreement
from taskptq.registry import ADAPTERS

from .metrics.distortion_metric import common_rows
from .models.lstr import LSTRHead
from .proximity import LANE_WIDTH
from .query_adapter import LaneQueryAdapter

__all__ = ['LaneAdapter']

# Noise on their background creates false lanes or ends true ones.
CONFIDENCE = ('*hm', 'cls', 'logits', 'seg', 'exist', 'mask', 'range')
NUM_ROWS = 36
# Head class -> channel dimensions of its tensors, unless they are the second
# of a map or the last of a list of queries.
CHANNEL_DIMS: dict[str, dict[str, tuple[int, ...]]] = {
    'BezierLaneHead': {'curves': (2, 3)},
    'CondLaneHead': {'mask': (), 'reg': (), 'range': (2,)},
}


@ADAPTERS.register_module(name='lane_detection.models.detector.LaneDetector')
class LaneAdapter(Adapter):
    """Adapter of lane detectors: the named tensors of their head.

    Args:
        model: A LaneDetector; ``forward_heads`` also accepts a quantized copy
            of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head_kinds = {
            **dict.fromkeys(CONFIDENCE, 'confidence'),
            '*': 'regression',
        }
        self.channel_dims = CHANNEL_DIMS.get(type(model.head).__name__, {})

    def by_query(self) -> LaneQueryAdapter:
        """Return the adapter of losses that compare a decoder's queries.

        Raises:
            ValueError: If the head has no decoder of queries.
        """
        head = self.model.head
        if not isinstance(head, LSTRHead):
            raise ValueError(
                f'{type(head).__name__} has no queries of a decoder, which '
                'this loss compares: use another recipe, e.g. '
                'qdrop-selective-focus'
            )
        return LaneQueryAdapter(self.model)

    def forward_like(
        self, model: nn.Module, batch: Any, *, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run a model on the instances that another model found.

        Args:
            model: Float or quantized model.
            batch: Collated batch.
            heads: Outputs of the other model; its ``seeds``, if any, are the
                positions of the instances.
        """
        data = model.data_preprocessor(batch, False)
        return dict(
            model(data['inputs'], mode='tensor', seeds=heads.get('seeds'))
        )

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the head's own confidence, in [0, 1], for each tensor."""
        return dict(self.model.head.foreground_proxy(heads))

    def decoded_proxy(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Weight each position by its distance to a decoded lane, [0, 1]."""
        return dict(self.model.head.lane_proximity(heads, metas))

    def soft_lines(self, heads: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return x at rows and the probability of a lane, query by query.

        Raises:
            ValueError: If the head's lanes are not queries.
        """
        head = self.model.head
        lines: tuple[Tensor, Tensor] | None = head.soft_lines(heads)
        if lines is None:
            raise ValueError(
                f'{type(head).__name__} has no queries that are lines by '
                'themselves, which this loss compares: use another recipe, '
                'e.g. qdrop-selective-focus'
            )
        return lines

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return the lanes of each image, in pixels of the original."""
        return list(self.model.head.decode(heads, metas))

    def disagreement(
        self,
        target: Mapping[str, Tensor],
        quant: Mapping[str, Tensor],
        metas: Sequence[Mapping[str, Any]],
    ) -> list[float]:
        """Return which share of each image's lanes changed, [0, 1].

        Args:
            target: Outputs of the float model.
            quant: Outputs of the quantized model.
            metas: Metainfo of each image.
        """
        return [
            lane_disagreement(
                one.points,
                two.points,
                rows=common_rows(meta, num_rows=NUM_ROWS),
                width=LANE_WIDTH * meta['ori_shape'][1],
            )
            for one, two, meta in zip(
                self.decode(target, metas),
                self.decode(quant, metas),
                metas,
                strict=True,
            )
        ]
