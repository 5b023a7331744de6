"""Segment Anything prompted by a detector, as one mmdet model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from taskptq.modules.base import QuantModule

from .detections import Detections, image_key, no_instances
from .loading import add_sam_prefix, detector_weights, load_exactly
from .prompting import (
    KINDS,
    Request,
    detector_request,
    ground_truth_request,
)
from .training import prompt_losses
from .views import View, assign_views, paste_masks, read_views

__all__ = ['PromptTesting', 'SAMDetector']

# Three masks for a lone point, whose object is ambiguous, as SAM is trained.
AMBIGUOUS = 'points'


@dataclass(frozen=True, kw_only=True)
class PromptTesting:
    """Settings of a SAM detector's ``test_cfg``.

    Args:
        max_prompts: Maximum number of detections per image, best first; None
            for all.
        score_thr: Detections with a lower score are dropped.
        mask_threshold: Logits above it are foreground.
        views_per_batch: Maximum number of views per batch of the image
            encoder.
        iou_in_scores: Rank masks by detection score times predicted IoU
            (``mask_scores``, which CocoMetric uses only for masks).
        remember_detections: Run the detector once per image file, also for
            copies of this model: for tables that compare many quantized SAMs
            behind one float detector. Detections of quantized detectors are
            never kept.
    """

    max_prompts: int | None = None
    score_thr: float = 0.0
    mask_threshold: float = 0.0
    views_per_batch: int = 8
    iou_in_scores: bool = False
    remember_detections: bool = False

    def __post_init__(self) -> None:
        for name in ('max_prompts', 'views_per_batch'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'test_cfg.{name}={value} must be at least 1')


@MODELS.register_module()
class SAMDetector(BaseDetector):
    """Detector whose boxes prompt SAM for the objects' masks.

    Args:
        sam: Config of a PromptedSAM.
        detector: Config of any mmdet detector; None to train SAM alone, or
            to evaluate with prompts from annotations. It stays frozen.
        prompts: Kinds of prompts, of ``detector``, ``gt_box``, ``gt_point``,
            ``gt_box_point``. The first makes the predictions, all of them
            make ``data_sample.prompted``. Prompts from annotations are
            skipped for images without loaded annotations.
        multimask_output: Predict three masks per prompt and use the one of
            highest predicted IoU: True, False, or ``points`` (only for lone
            points).
        train_cfg: Fields of ``training.PromptTraining``.
        test_cfg: Fields of :class:`PromptTesting`.
        data_preprocessor: Config of a SAMDataPreprocessor.
        init_cfg: See mmengine's BaseModule.

    Raises:
        ValueError: If ``prompts`` is empty, has an unknown kind, or needs a
            missing detector.
    """

    def __init__(
        self,
        sam: dict[str, Any],
        *,
        detector: dict[str, Any] | None = None,
        prompts: Sequence[str] = ('detector',),
        multimask_output: bool | str = AMBIGUOUS,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        check_prompts(prompts, with_detector=detector is not None)
        if multimask_output not in (True, False, AMBIGUOUS):
            raise ValueError(
                f'multimask_output={multimask_output!r}: choose True, False '
                f'or {AMBIGUOUS!r}'
            )
        self.sam = MODELS.build(sam)
        self.detector = None
        if detector is not None:
            self.detector = MODELS.build(detector).requires_grad_(False)
        self.prompts = tuple(prompts)
        self.multimask_output = multimask_output
        self.train_cfg = dict(train_cfg or {})
        self.test_cfg = PromptTesting(**(test_cfg or {}))
        self._detections = Detections()
        self.train(self.training)

    def train(self, mode: bool = True) -> SAMDetector:
        """Set the mode of SAM; the detector stays in eval mode."""
        super().train(mode)
        if self.detector is not None:
            self.detector.eval()
        return self

    def load_detector(self, path: str | Path) -> None:
        """Load the detector from a checkpoint of mmdet.

        Raises:
            ValueError: If there is no detector, or the file does not fit.
        """
        if self.detector is None:
            raise ValueError(
                f'this SAMDetector has no detector to load {path} into: give '
                'detector=dict(...)'
            )
        load_exactly(self.detector, detector_weights(path), path=path)

    def load_sam(self, path: str | Path) -> None:
        """Load SAM from an official file or an mm checkpoint.

        Raises:
            ValueError: If the file holds no SAM or another size.
        """
        self.sam.load(path)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Accept the keys of official SAM files."""
        self._detections = Detections()
        add_sam_prefix(state_dict, prefix=prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def loss(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return SAM's losses for prompts from the annotations."""
        return prompt_losses(
            self.sam, batch_inputs, batch_data_samples, cfg=self.train_cfg
        )

    def predict(
        self,
        batch_inputs: dict[str, Any],
        batch_data_samples: Sequence[Any],
        rescale: bool = True,
    ) -> Sequence[Any]:
        """Add masks to the data samples.

        Args:
            batch_inputs: See SAMDataPreprocessor.
            batch_data_samples: With ``sam_views`` and ``sam_view_sizes``.
            rescale: Must be True: masks are of the original size.

        Returns:
            The data samples with ``pred_instances`` and ``prompted``.
        """
        if not rescale:
            raise ValueError(
                'rescale=False is not possible: the views of an '
                'image have no common size'
            )
        detections = self.detect(batch_inputs, batch_data_samples)
        for views, sample, found in zip(
            batch_inputs['sam'], batch_data_samples, detections, strict=True
        ):
            requests = self.requests(sample, found, device=views.device)
            prompted = self.segment(views, sample, requests)
            sample.prompted = prompted
            sample.pred_instances = prompted.get(
                self.prompts[0], no_instances(sample, device=views.device)
            )
        return batch_data_samples

    @torch.no_grad()
    def detect(
        self, batch_inputs: dict[str, Any], batch_data_samples: Sequence[Any]
    ) -> list[Any]:
        """Return the detector's instances of each image, original pixels.

        Raises:
            ValueError: If the batch has no image for the detector.
        """
        if self.detector is None or 'detector' not in self.prompts:
            return [None] * len(batch_data_samples)
        if 'img' not in batch_inputs:
            raise ValueError(
                'the batch has no image for the detector: give '
                'SAMDataPreprocessor its detector=dict(...), and leave '
                'with_detector of PackSAMInputs on'
            )
        keys = [
            image_key(sample) if self._remembers() else None
            for sample in batch_data_samples
        ]
        if all(key in self._detections for key in keys):
            return [self._detections[key].clone() for key in keys]
        samples = [
            DetDataSample(metainfo=dict(sample.metainfo))
            for sample in batch_data_samples
        ]
        results = self.detector.predict(
            batch_inputs['img'], samples, rescale=True
        )
        found = [sample.pred_instances for sample in results]
        self._detections.update(
            {
                key: instances.clone()
                for key, instances in zip(keys, found, strict=True)
                if key is not None
            }
        )
        return found

    def _remembers(self) -> bool:
        """Return whether to keep detections; not those of quantized layers."""
        return self.test_cfg.remember_detections and not any(
            isinstance(m, QuantModule) for m in self.detector.modules()
        )

    def requests(
        self, sample: Any, detections: Any, *, device: torch.device
    ) -> dict[str, Request]:
        """Return the prompts of an image by kind."""
        annotated = sample.get('gt_instances')
        found = {}
        for kind in self.prompts:
            if kind == 'detector':
                found[kind] = detector_request(
                    detections,
                    max_prompts=self.test_cfg.max_prompts,
                    score_thr=self.test_cfg.score_thr,
                )
            elif annotated is not None and 'bboxes' in annotated:
                found[kind] = ground_truth_request(
                    kind, annotated, device=device
                )
        return found

    def embed(self, views: Tensor, index: Sequence[int]) -> dict[int, Tensor]:
        """Embed some views of an image.

        Args:
            views: (V, 3, S, S).
            index: Indices of the views to embed.

        Returns:
            Index of the view -> (1, C, S / 16, S / 16).
        """
        index = sorted(index)
        step = self.test_cfg.views_per_batch
        embeddings: dict[int, Tensor] = {}
        for start in range(0, len(index), step):
            chosen = index[start : start + step]
            parts = self.sam.encode(views[chosen]).split(1)
            embeddings.update(zip(chosen, parts, strict=True))
        return embeddings

    def segment(
        self, views: Tensor, sample: Any, requests: Mapping[str, Request]
    ) -> dict[str, InstanceData]:
        """Answer all requests for an image; each view is embedded once."""
        geometry = read_views(sample.metainfo)
        places = {
            kind: assign_views(request.extent, geometry)
            for kind, request in requests.items()
        }
        used = {int(i) for place in places.values() for i in place.unique()}
        embeddings = self.embed(views, sorted(used))
        return {
            kind: self.answer(
                request, places[kind], geometry, embeddings, sample
            )
            for kind, request in requests.items()
        }

    def answer(
        self,
        request: Request,
        place: Tensor,
        geometry: list[View],
        embeddings: Mapping[int, Tensor],
        sample: Any,
    ) -> InstanceData:
        """Predict the masks of a request, at the image's original size.

        Args:
            request: P prompts.
            place: (P,), index of the view of each prompt.
            geometry: The image's views.
            embeddings: Index of the view -> embedding.
            sample: Data sample of the image.
        """
        height, width = sample.ori_shape[:2]
        device = request.boxes.device
        masks = torch.zeros(
            len(request), height, width, dtype=torch.bool, device=device
        )
        iou = torch.zeros(len(request), device=device)
        for view in place.unique().tolist():
            index = (place == view).nonzero()[:, 0]
            logits, best = self.best_masks(
                embeddings[view], request, geometry[view], index
            )
            masks[index] = paste_masks(
                logits,
                geometry[view],
                frame=self.sam.image_size,
                image_shape=(height, width),
                threshold=self.test_cfg.mask_threshold,
            )
            iou[index] = best.float()
        return self.instances(request, masks, iou)

    def best_masks(
        self, embedding: Tensor, request: Request, view: View, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode some prompts of a view and return the best mask of each.

        Returns:
            Logits (Q, S / 4, S / 4) and predicted IoUs (Q,).
        """
        logits, iou = self.decode(embedding, request, view, index)
        iou, best = iou.max(dim=1)
        return logits[torch.arange(len(best), device=best.device), best], iou

    def decode(
        self, embedding: Tensor, request: Request, view: View, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return all logits (Q, M, S / 4, S / 4) and IoUs (Q, M)."""
        several = self.multimask_output
        if several == AMBIGUOUS:
            several = not request.box_prompts
        logits, iou = self.sam.decode(
            embedding,
            request.in_view(view, index),
            multimask_output=bool(several),
        )
        return logits, iou

    def instances(
        self, request: Request, masks: Tensor, iou: Tensor
    ) -> InstanceData:
        """Pack predictions; annotations are scored by the predicted IoU."""
        quality = iou.clamp(0, 1)
        scores = quality if request.scores is None else request.scores
        result = InstanceData(
            bboxes=request.boxes,
            labels=request.labels,
            scores=scores,
            masks=masks,
            iou=iou,
        )
        if self.test_cfg.iou_in_scores and request.scores is not None:
            result.mask_scores = request.scores * quality
        return result

    def _forward(
        self,
        batch_inputs: dict[str, Any],
        batch_data_samples: Sequence[Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the raw outputs for the first available kind of prompt.

        Returns:
            ``embeddings`` (views with prompts, C, S / 16, S / 16); with data
            samples also ``logits`` (prompts, M, S / 4, S / 4) and ``iou``
            (prompts, M), prompts ordered by image and view.
        """
        if batch_data_samples is None:
            return {'embeddings': self.extract_feat(batch_inputs)}
        detections = self.detect(batch_inputs, batch_data_samples)
        embeddings, outputs = [], []
        for views, sample, found in zip(
            batch_inputs['sam'], batch_data_samples, detections, strict=True
        ):
            requests = self.requests(sample, found, device=views.device)
            request = next(iter(requests.values()), None)
            if request is None or len(request) == 0:
                continue
            geometry = read_views(sample.metainfo)
            place = assign_views(request.extent, geometry)
            used = place.unique().tolist()
            embedded = self.embed(views, used)
            embeddings += [embedded[view] for view in used]
            outputs += [
                self.decode(
                    embedded[view],
                    request,
                    geometry[view],
                    (place == view).nonzero()[:, 0],
                )
                for view in used
            ]
        if not outputs:
            return {'embeddings': self.extract_feat(batch_inputs)}
        logits, iou = zip(*outputs, strict=True)
        return {
            'embeddings': torch.cat(embeddings),
            'logits': torch.cat(logits),
            'iou': torch.cat(iou),
        }

    def extract_feat(self, batch_inputs: dict[str, Any]) -> Tensor:
        """Embed every view of every image, (views, C, S / 16, S / 16)."""
        parts = []
        for views in batch_inputs['sam']:
            embedded = self.embed(views, range(len(views)))
            parts += [embedded[index] for index in range(len(views))]
        return torch.cat(parts)


def check_prompts(prompts: Sequence[str], *, with_detector: bool) -> None:
    """Refuse impossible kinds of prompts; see :class:`SAMDetector`."""
    unknown = [kind for kind in prompts if kind not in KINDS]
    if isinstance(prompts, str) or not prompts or unknown:
        raise ValueError(
            f'prompts={prompts!r}: give a list of one or more of '
            f'{", ".join(KINDS)}'
        )
    if 'detector' in prompts and not with_detector:
        raise ValueError(
            "prompts has 'detector', but there is none: give "
            "detector=dict(...), or prompts=['gt_box']"
        )
