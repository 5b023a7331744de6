"""Named outputs of mmdet's DETR family, query by query.

For DETR, Conditional DETR, DAB-DETR, Deformable DETR and DINO. A model runs in
two parts, so that training only the decoder does not repeat the rest:
``trunk`` up to the encoder's outputs, and ``forward_from`` from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import Adapter, uncertainty
from taskptq.modules import AttendedTap
from taskptq.registry import ADAPTERS

__all__ = [
    'DeformableDetrAdapter',
    'DetrAdapter',
    'DinoAdapter',
    'decoder_taps',
    'matching_queries',
    'recorded',
]

SELECTED = 'selected'
# Attention of a decoder layer -> name of its output feature.
TAPPED = {'cross_attn': 'attended', 'self_attn': 'self_attended'}
FLOWS = frozenset(
    {'mmdet.models.detectors.base_detr', 'mmdet.models.detectors.dino'}
)
SELECTIONS = frozenset(
    {'mmdet.models.detectors.deformable_detr', 'mmdet.models.detectors.dino'}
)


def decoder_taps(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that output the co-attended features D of a decoder.

    Args:
        model: Detector with ``decoder.layers``; only swapped attentions have
            such a module.

    Returns:
        ``'attended.{layer}'`` of the cross-attention and
        ``'self_attended.{layer}'`` -> module whose output is D, (B, N, E).
    """
    found = {}
    for number, layer in enumerate(model.decoder.layers):
        for attribute, kind in TAPPED.items():
            attention = getattr(layer, attribute, None)
            if attention is None:
                continue
            for module in attention.modules():
                if isinstance(module, AttendedTap):
                    found[f'{kind}.{number}'] = module
    return found


@contextmanager
def recorded(taps: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules, by name, while a model runs."""
    found: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    with ExitStack() as stack:
        for name, module in taps.items():
            handle = module.register_forward_hook(record(name))
            stack.callback(handle.remove)
        yield found


def matching_queries(feature: Tensor, *, num_queries: int) -> Tensor:
    """Drop the denoising queries, which come first while DINO trains.

    Args:
        feature: (B, denoising + num_queries, ...).
        num_queries: Object queries.
    """
    return feature[:, -num_queries:]


@ADAPTERS.register_module(name='mmdet.models.detectors.detr.DETR')
class DetrAdapter(Adapter):
    """Adapter of DETR, Conditional DETR and DAB-DETR, in eval mode.

    Outputs of each decoder layer: ``cls.{layer}`` (B, N, C) logits,
    ``box.{layer}`` (B, N, 4) as cx, cy, w, h relative to the image,
    ``attended.{layer}`` and ``self_attended.{layer}`` (B, N, E), the
    co-attended features of a swapped model's attentions.

    Args:
        model: The detector; the methods also accept a quantized copy of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head_kinds = {'cls.*': 'confidence', '*': 'regression'}

    @property
    def use_sigmoid(self) -> bool:
        """Whether classes use a sigmoid, not a softmax with background."""
        return bool(self.model.bbox_head.loss_cls.use_sigmoid)

    def trunk(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        """Run backbone, neck and encoder.

        Args:
            model: Float or quantized model.
            batch: Collated batch of the dataloader.

        Returns:
            Plain inputs of :meth:`forward_from`.

        Raises:
            NotImplementedError: If the detector overrides
                ``forward_transformer``.
        """
        if type(model).forward_transformer.__module__ not in FLOWS:
            raise NotImplementedError(
                f'{type(model).__name__} has its own forward_transformer, '
                f'which {type(self).__name__} does not support: register an '
                'adapter for its class'
            )
        data = model.data_preprocessor(batch, False)
        features = model.extract_feat(data['inputs'])
        encoder, decoder = model.pre_transformer(
            features, data['data_samples']
        )
        return {
            'memory': dict(model.forward_encoder(**encoder)),
            'decoder': dict(decoder),
        }

    def forward_from(
        self,
        model: nn.Module,
        trunk: Mapping[str, Any],
        *,
        heads: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run decoder and head on the outputs of :meth:`trunk`.

        Args:
            model: Float or quantized model.
            trunk: Inputs; not modified.
            heads: Outputs of another model whose selected queries are
                reused; None selects queries.
        """
        outputs: dict[str, Tensor] = {}
        inputs = dict(trunk['decoder'])
        inputs.update(self.queries(model, trunk['memory'], outputs, heads))
        taps = decoder_taps(model)
        with recorded(taps) as features:
            states = model.forward_decoder(**inputs)
        scores, boxes = model.bbox_head(**states)
        # Without intermediate outputs, only the last layer's is available.
        first = len(model.decoder.layers) - len(scores)
        for number, (score, box) in enumerate(
            zip(scores, boxes, strict=True), start=first
        ):
            outputs[f'cls.{number}'] = score
            outputs[f'box.{number}'] = box
        for name in taps:
            outputs[name] = features[name]
        return outputs

    def queries(
        self,
        model: nn.Module,
        memory: Mapping[str, Any],
        outputs: dict[str, Tensor],
        heads: Mapping[str, Tensor] | None,
    ) -> dict[str, Any]:
        """Build the decoder's queries.

        Args:
            model: Float or quantized model.
            memory: The encoder's outputs.
            outputs: Receives the outputs that the selection depends on.
            heads: See :meth:`forward_from`.
        """
        return dict(model.pre_decoder(**memory)[0])

    def forward_heads(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run a model up to boxes and classes, without post-processing.

        Args:
            model: Float or quantized model.
            batch: Collated batch of the dataloader.
        """
        return self.forward_from(model, self.trunk(model, batch))

    def forward_like(
        self, model: nn.Module, batch: Any, *, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run a model on the queries that another model selected.

        Args:
            model: Float or quantized model.
            batch: Collated batch.
            heads: Outputs of the other model.
        """
        return self.forward_from(model, self.trunk(model, batch), heads=heads)

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """Return the highest foreground probability of each query.

        Args:
            logits: (B, N, C).

        Returns:
            (B, N, 1).
        """
        if self.use_sigmoid:
            return logits.sigmoid().amax(dim=-1, keepdim=True)
        # The last class is the background.
        foreground = logits.softmax(dim=-1)[..., :-1]
        return foreground.amax(dim=-1, keepdim=True)

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight each query by its highest class probability in the layer."""
        layers = [
            name.partition('.')[2] for name in heads if name.startswith('cls.')
        ]
        by_layer = {
            layer: self.class_probabilities(heads[f'cls.{layer}'])
            for layer in layers
        }
        ones = super().foreground_proxy(heads)
        return {
            name: by_layer.get(name.partition('.')[2], ones[name])
            for name in heads
        }

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh the last layer's outputs, which are all that is decoded.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.
        """
        last = last_layer(heads)
        logits = heads[f'cls.{last}']
        p = logits.sigmoid() if self.use_sigmoid else logits.softmax(dim=-1)
        return {
            f'cls.{last}': uncertainty(p),
            f'box.{last}': self.class_probabilities(logits),
        }

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return mmdet's InstanceData (boxes in pixels) of each image."""
        last = last_layer(heads)
        return list(
            self.model.bbox_head.predict_by_feat(
                heads[f'cls.{last}'][None],
                heads[f'box.{last}'][None],
                batch_img_metas=[dict(meta) for meta in metas],
                rescale=True,
            )
        )


@ADAPTERS.register_module(
    name='mmdet.models.detectors.deformable_detr.DeformableDETR'
)
class DeformableDetrAdapter(DetrAdapter):
    """Adapter of Deformable DETR, one-stage or two-stage.

    Two-stage models select their queries from the encoder's tokens by score.
    ``selected`` (B, N) holds the selected tokens; a quantized model that is
    compared query by query reuses the float model's selection.
    """

    def selection_scores(self, logits: Tensor) -> Tensor:
        """Return what tokens are selected by, (B, M, C) -> (B, M)."""
        return logits[..., 0]

    def queries(
        self,
        model: nn.Module,
        memory: Mapping[str, Any],
        outputs: dict[str, Tensor],
        heads: Mapping[str, Tensor] | None,
    ) -> dict[str, Any]:
        """Make the decoder's queries, see :meth:`DetrAdapter.queries`.

        Raises:
            NotImplementedError: If the detector overrides ``pre_decoder``.
        """
        if not model.as_two_stage:
            return super().queries(model, memory, outputs, heads)
        if type(model).pre_decoder.__module__ not in SELECTIONS:
            raise NotImplementedError(
                f'{type(model).__name__} has its own pre_decoder, whose '
                f'selection of queries {type(self).__name__} does not '
                'support: register an adapter for its class'
            )
        selected = None if heads is None else heads.get(SELECTED)
        branch = model.bbox_head.cls_branches[model.decoder.num_layers]

        def follow(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
            if selected is None:
                scores = self.selection_scores(logits)
                outputs[SELECTED] = scores.topk(
                    model.num_queries, dim=1
                ).indices
                return logits
            outputs[SELECTED] = selected
            return ranking(selected, like=logits)

        handle = branch.register_forward_hook(follow)
        try:
            return super().queries(model, memory, outputs, heads)
        finally:
            handle.remove()


@ADAPTERS.register_module(name='mmdet.models.detectors.dino.DINO')
class DinoAdapter(DeformableDetrAdapter):
    """Adapter of DINO, which selects by the best class.

    In eval mode there are no denoising queries.
    """

    def selection_scores(self, logits: Tensor) -> Tensor:
        """Return what tokens are selected by, (B, M, C) -> (B, M)."""
        return logits.amax(dim=-1)


def last_layer(heads: Mapping[str, Tensor]) -> int:
    """Return the number of the last decoder layer that has outputs."""
    return max(
        int(name.partition('.')[2])
        for name in heads
        if name.startswith('box.')
    )


def ranking(selected: Tensor, *, like: Tensor) -> Tensor:
    """Return logits from which a top-k selects given tokens in given order.

    Args:
        selected: (B, N) token indices, best first.
        like: (B, M, C) logits; only their shape and device are used.

    Returns:
        (B, M, C) float32: N down to 1 at the tokens, 0 elsewhere.
    """
    count = selected.shape[1]
    ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=like.device)
    scores = torch.zeros(like.shape[:2], device=like.device)
    scores.scatter_(1, selected, ranks.expand_as(selected))
    return scores[..., None].expand(like.shape)
