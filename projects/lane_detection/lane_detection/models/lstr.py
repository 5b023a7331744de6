"""LSTR: a small transformer that predicts each lane as a curve.

Architecture, matching and losses after Liu et al., "End-to-end Lane Shape
Prediction with Transformers", WACV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import (
    DetrTransformerDecoder,
    DetrTransformerEncoder,
    SinePositionalEncoding,
)
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .lane_head import SOFT_ROWS, LaneHead, lane_instances, soft_presence
from .lstr_curves import curve_points, curve_rows
from .lstr_loss import LSTRLossWeights, curve_losses, curve_targets

__all__ = ['LSTRHead', 'LSTRResNet', 'LSTRTesting']


@MODELS.register_module()
class LSTRResNet(ResNet):
    """ResNet with one block fewer in its first stage: ``depth=16``."""

    arch_settings: ClassVar[dict[int, Any]] = {
        **ResNet.arch_settings,
        16: (BasicBlock, (1, 2, 2, 2)),
    }


@dataclass(frozen=True, kw_only=True)
class LSTRTesting:
    """Settings of an LSTRHead's ``test_cfg``.

    Args:
        score_thr: A query above this probability is a lane.
        num_points: Points of each decoded lane; those outside the image are
            dropped.
    """

    score_thr: float = 0.5
    num_points: int = 72


@MODELS.register_module()
class LSTRHead(LaneHead):
    """Encoder, decoder and three small networks.

    ``logits``, (B, Q, 2), stand for no lane and lane; ``curve``, (B, Q, 8),
    holds lower, upper, k, f, m, n, b, b' (see ``lstr_curves``), of which k,
    f, m and n are shared by all queries of an image.

    The transformer's layers are those of mmdet's DETR.

    Args:
        in_channels: Channels of the feature map.
        embed_dims: Channels of tokens and queries.
        num_queries: Maximum number of lanes, Q.
        num_heads: Heads of each attention.
        feedforward_channels: Hidden channels of each layer.
        num_encoder_layers: Layers of the encoder.
        num_decoder_layers: Layers of the decoder; each has its own loss.
        dropout: Dropout of the transformer, in training.
        train_cfg: Fields of :class:`.lstr_loss.LSTRLossWeights`.
        test_cfg: Fields of :class:`LSTRTesting`.
        init_cfg: See mmengine's BaseModule.
    """

    head_names: ClassVar[tuple[str, ...]] = ('logits', 'curve')

    def __init__(
        self,
        in_channels: int,
        *,
        embed_dims: int = 32,
        num_queries: int = 7,
        num_heads: int = 2,
        feedforward_channels: int = 128,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 2,
        dropout: float = 0.1,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(
            train_cfg=train_cfg, test_cfg=test_cfg, init_cfg=init_cfg
        )
        self.loss_weights = LSTRLossWeights(**self.train_cfg)
        self.testing_settings = LSTRTesting(**self.test_cfg)
        self.input_proj = nn.Conv2d(in_channels, embed_dims, 1)
        self.position = SinePositionalEncoding(embed_dims // 2, normalize=True)

        def layer(*names: str) -> dict[str, Any]:
            # Separate configs, since the layers fill in missing keys.
            attention = {
                'embed_dims': embed_dims,
                'num_heads': num_heads,
                'attn_drop': dropout,
                'proj_drop': dropout,
                'batch_first': True,
            }
            return {
                **{name: dict(attention) for name in names},
                'ffn_cfg': {
                    'embed_dims': embed_dims,
                    'feedforward_channels': feedforward_channels,
                    'num_fcs': 2,
                    'ffn_drop': dropout,
                },
            }

        self.encoder = DetrTransformerEncoder(
            num_encoder_layers, layer('self_attn_cfg')
        )
        self.decoder = DetrTransformerDecoder(
            num_decoder_layers, layer('self_attn_cfg', 'cross_attn_cfg')
        )
        self.query_embed = nn.Embedding(num_queries, embed_dims)
        self.class_embed = nn.Linear(embed_dims, 2)
        # Per query: lower, upper, b, b'; per image: k, f, m, n.
        self.reg_branches = nn.ModuleList(
            [
                three_layers(embed_dims, 4),
                three_layers(embed_dims, 4),
            ]
        )

    def init_weights(self) -> None:
        """Draw the transformer's matrices as DETR does (Xavier uniform)."""
        super().init_weights()
        for module in (self.encoder, self.decoder):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def encode(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the encoder's tokens and their positions, (B, H W, C)."""
        x = self.input_proj(feats[-1])
        position = self.position(None, x).flatten(2).transpose(1, 2)
        tokens = x.flatten(2).transpose(1, 2)  # B x H W x C
        return self.encoder(tokens, position, None), position

    def read(self, memory: Tensor, position: Tensor) -> Tensor:
        """Return the queries after each decoder layer, (L, B, Q, C).

        Args:
            memory: The encoder's tokens, (B, H W, C).
            position: Their positions, (B, H W, C).
        """
        queries = self.query_embed.weight.expand(memory.shape[0], -1, -1)
        return self.decoder(
            torch.zeros_like(queries),
            key=memory,
            value=memory,
            query_pos=queries,
            key_pos=position,
            key_padding_mask=None,
        )

    def hidden_states(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the queries after each decoder layer, (L, B, Q, C)."""
        return self.read(*self.encode(feats))

    def outputs_of(self, hidden: Tensor) -> dict[str, Tensor]:
        """Return logits and curves of one layer's queries, (B, Q, C)."""
        specific = self.reg_branches[0](hidden)
        shared = self.reg_branches[1](hidden).mean(dim=1, keepdim=True)
        shared = shared.expand_as(specific)
        curve = torch.cat(
            [specific[..., :2], shared, specific[..., 2:]], dim=-1
        )
        return {'logits': self.class_embed(hidden), 'curve': curve}

    def forward(self, feats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``logits`` and ``curve`` of a batch."""
        return self.outputs_of(self.hidden_states(feats)[-1])

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses of the last and, as ``d0.``, of other layers."""
        losses: dict[str, Tensor] = {}
        layers = self.hidden_states(feats)
        for i, hidden in enumerate(layers):
            found = self.loss_by_feat(self.outputs_of(hidden), data_samples)
            prefix = '' if i == len(layers) - 1 else f'd{i}.'
            losses |= {f'{prefix}{name}': v for name, v in found.items()}
        return losses

    def loss_by_feat(
        self, outputs: Mapping[str, Tensor], data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the losses of classes, curves, lower and upper ends."""
        targets = [
            curve_targets(
                sample,
                num_rows=self.loss_weights.num_rows,
                device=outputs['curve'].device,
            )
            for sample in data_samples
        ]
        return curve_losses(
            outputs['logits'],
            outputs['curve'],
            targets,
            weights=self.loss_weights,
        )

    def decode(
        self, outputs: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[InstanceData]:
        """Draw the curves of the queries that are lanes."""
        settings = self.testing_settings
        scores = outputs['logits'].detach().softmax(dim=-1)[..., 1]
        found = []
        for image_scores, curves, meta in zip(
            scores, outputs['curve'].detach(), metas, strict=True
        ):
            kept = image_scores > settings.score_thr
            points = curve_points(curves[kept], num_points=settings.num_points)
            height, width = meta['img_shape'][:2]
            inside = (points[..., 0] >= 0) & (points[..., 0] <= 1)
            points = points * points.new_tensor([width, height])
            lanes = [
                lane[mask] for lane, mask in zip(points, inside, strict=True)
            ]
            found.append(
                lane_instances(lanes, scores=image_scores[kept], meta=meta)
            )
        return found

    def soft_lines(
        self, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return x at rows, (B, Q, R), and each query's probability."""
        no_lane, lane = outputs['logits'].float().unbind(dim=-1)
        return (
            curve_rows(outputs['curve'].float(), num_rows=SOFT_ROWS),
            soft_presence(
                lane - no_lane, score_thr=self.testing_settings.score_thr
            ),
        )

    def foreground_proxy(
        self, outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight both tensors by each query's probability of a lane."""
        lane = outputs['logits'].detach().softmax(dim=-1)[..., 1:]
        return {'logits': lane, 'curve': lane}


def three_layers(width: int, out_features: int) -> nn.Sequential:
    """Return three linears with ReLU between them."""
    return nn.Sequential(
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, out_features),
    )
