"""A detector with the scores of one model and the boxes of another."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['MixedDetector']


class MixedDetector(nn.Module):
    """Two copies of a detector, e.g. float and quantized, run as one.

    In each stage, scores, centerness and other score factors come from the
    first copy, the outputs of the regression layers from the second. Both
    copies see the same regions.

    Args:
        scores: Detector in eval mode that classifies.
        boxes: Detector of the same layout that localizes.

    Raises:
        ValueError: If the detector is neither a single-stage detector nor a
            two-stage detector with a single box head.
    """

    def __init__(self, scores: nn.Module, boxes: nn.Module) -> None:
        super().__init__()
        roi_head = getattr(boxes, 'roi_head', None)
        head = getattr(
            boxes if roi_head is None else roi_head, 'bbox_head', None
        )
        if not isinstance(head, nn.Module) or isinstance(head, nn.ModuleList):
            raise ValueError(
                f'{type(boxes).__name__} has no single bbox_head '
                'with separate scores and boxes'
            )
        self.scores = scores
        self.boxes = boxes

    @torch.no_grad()
    def test_step(self, batch: Any) -> list[Any]:
        """Return the data samples of a batch with ``pred_instances``.

        Args:
            batch: Collated batch of the dataloader.
        """
        data = self.boxes.data_preprocessor(batch, False)
        inputs, samples = data['inputs'], data['data_samples']
        features = (
            self.scores.extract_feat(inputs),
            self.boxes.extract_feat(inputs),
        )
        if hasattr(self.boxes, 'roi_head'):
            found = self._two_stages(*features, samples=samples)
        else:
            found = self._dense(
                'bbox_head', *features, samples=samples, rescale=True
            )
        done: list[Any] = self.boxes.add_pred_to_datasample(samples, found)
        return done

    def _dense(
        self,
        name: str,
        of_scores: Any,
        of_boxes: Any,
        *,
        samples: Any,
        rescale: bool,
    ) -> Any:
        """Return a dense head's predictions from both copies' features."""
        head = getattr(self.boxes, name)
        classes, _, *factors = getattr(self.scores, name)(of_scores)
        return head.predict_by_feat(
            classes,
            head(of_boxes)[1],
            *factors,
            rescale=rescale,
            batch_img_metas=[sample.metainfo for sample in samples],
        )

    def _two_stages(
        self, of_scores: Any, of_boxes: Any, *, samples: Any
    ) -> Any:
        """Return the second stage's predictions on mixed proposals."""
        proposals = self._dense(
            'rpn_head', of_scores, of_boxes, samples=samples, rescale=False
        )
        roi_head = self.boxes.roi_head
        rois: list[Tensor] = []

        def classify(_module: nn.Module, _args: Any, output: Any) -> Any:
            found = self.scores.roi_head._bbox_forward(of_scores, rois[-1])
            return found['cls_score'], output[1]

        with ExitStack() as stack:
            for handle in (
                roi_head.bbox_roi_extractor.register_forward_pre_hook(
                    lambda _module, args: rois.append(args[1])
                ),
                roi_head.bbox_head.register_forward_hook(classify),
            ):
                stack.callback(handle.remove)
            return roi_head.predict(of_boxes, proposals, samples, rescale=True)
