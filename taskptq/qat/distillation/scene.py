"""What student and teacher computed on one batch, for regions and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import SegmentorAdapter
from taskptq.methods.db_llm import binary_entropy, class_entropy

__all__ = ['BOX_HEADS', 'Scene', 'box_head_of', 'decoder_of']

# Modules that propose boxes, the first that a model has.
BOX_HEADS = ('rpn_head', 'bbox_head')
# Least score of a proposal, by the head: an RPN's scores are of objectness.
SCORES = {'rpn_head': 0.85, 'bbox_head': 0.3}


def box_head_of(model: nn.Module) -> str | None:
    """Return the name of the head whose boxes are proposals, or None."""
    return next((name for name in BOX_HEADS if hasattr(model, name)), None)


def decoder_of(model: nn.Module) -> bool:
    """Return whether a model decodes queries, as DETRs do."""
    return hasattr(model, 'decoder') and hasattr(model, 'num_queries')


@dataclass
class Scene:
    """One batch.

    Args:
        inputs: Preprocessed images, (B, 3, H, W).
        samples: Their data samples.
        student: Model in training.
        teacher: Float model.
        own: Records of the student, by tap.
        other: Records of the teacher.
        heads: Named outputs of the teacher's adapter.
        adapter: The teacher's adapter.
    """

    inputs: Tensor
    samples: Sequence[Any]
    student: nn.Module
    teacher: nn.Module
    own: Mapping[str, list[Any]]
    other: Mapping[str, list[Any]]
    heads: Mapping[str, Tensor]
    adapter: Any

    def annotations(self) -> list[Tensor]:
        """Return each image's true boxes, (G, 4) corners in pixels.

        Raises:
            ValueError: If the samples have no boxes.
        """
        found = []
        for sample in self.samples:
            truth = getattr(sample, 'gt_instances', None)
            boxes = getattr(truth, 'bboxes', None)
            if boxes is None:
                raise ValueError(
                    "regions='annotations' needs data samples with "
                    f'gt_instances.bboxes, which {type(sample).__name__} '
                    "lacks: use regions='foreground' or 'classes'"
                )
            found.append(getattr(boxes, 'tensor', boxes).to(self.inputs))
        return found

    @torch.no_grad()
    def proposals(
        self, *, score_thr: float | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return both models' confident boxes and their scores.

        Args:
            score_thr: Least score; None is 0.85 of an RPN, 0.3 of a head
                with classes.

        Returns:
            Boxes (N, 4) and scores (N,) of each image of the student, then
            of the teacher.
        """
        found = []
        for model, records in (
            (self.student, self.own),
            (self.teacher, self.other),
        ):
            name = box_head_of(model)
            assert name is not None
            head: Any = getattr(model, name)
            least = SCORES[name] if score_thr is None else score_thr
            results = head.predict_by_feat(
                *_detached(records[name][-1]),
                batch_img_metas=[sample.metainfo for sample in self.samples],
                rescale=False,
            )
            for result in results:
                boxes = getattr(result.bboxes, 'tensor', result.bboxes)
                sure = result.scores >= least
                found.append((boxes[sure], result.scores[sure]))
        return found

    @torch.no_grad()
    def foreground(self) -> list[Tensor]:
        """Return how sure the teacher is of an object at each position.

        Returns:
            Maps (B, 1, H, W), or queries (B, N, 1), in [0, 1].
        """
        if 'rpn_head' in self.other:
            scores = self.other['rpn_head'][-1][0]
            return [s.sigmoid().amax(dim=1, keepdim=True) for s in scores]
        proxies = self.adapter.foreground_proxy(self.heads)
        return [p for p in proxies.values() if p.dim() >= 3]

    @torch.no_grad()
    def doubt(self) -> list[Tensor]:
        """Return the teacher's entropy at each position, as foreground."""
        if isinstance(self.adapter, SegmentorAdapter):
            return [
                class_entropy(logits.softmax(dim=1), dim=1)[:, None]
                for logits in self.heads.values()
                if logits.dim() == 4 and logits.shape[1] > 1
            ]
        return [binary_entropy(p.clamp(0, 1)) for p in self.foreground()]

    def stride(self, feature: Tensor) -> float:
        """Return the pixels of a cell of a map, along the width."""
        return self.inputs.shape[-1] / feature.shape[-1]


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_detached(item) for item in outputs)
    return outputs
