"""Predictions of an exported file for one image, with or without a config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate

from taskptq.engine.calibration_data import reads_labels
from taskptq.engine.config_model import build_model, load_config
from taskptq.engine.datasets import leaf_datasets
from taskptq.engine.onnx_decode import decode
from taskptq.engine.onnx_hook import install_onnx
from taskptq.engine.onnx_metadata import open_parts
from taskptq.engine.onnx_preprocess import prepare_image, read_image
from taskptq.engine.raw_outputs import MAIN

__all__ = ['Prediction', 'predict_file', 'predict_with_host']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in an image.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the image; or None.
        scores: (N,), best first; or None.
        labels: (N,), indices of ``classes``; or None.
        label_map: (H, W), index of the class of each pixel; or None.
        classes: Names of the classes, or None.
    """

    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_map: np.ndarray | None = None
    classes: list[str] | None = None

    def name(self, label: int) -> str:
        """Return the name of a class, or its number."""
        known = self.classes or []
        return known[label] if label < len(known) else str(label)

    def above(self, score: float) -> Prediction:
        """Return the boxes of at least a score."""
        if self.boxes is None:
            return self
        kept = self.scores >= score
        return dataclasses.replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return boxes, or the share of each class, as plain values."""
        if self.label_map is not None:
            count = np.bincount(self.label_map.ravel())
            shares = count / self.label_map.size
            return {
                'shares': {
                    self.name(label): round(float(share), 4)
                    for label, share in enumerate(shares)
                    if share > 0
                }
            }
        return {
            'boxes': [
                {
                    'class': self.name(int(label)),
                    'score': round(float(score), 4),
                    'box': [round(float(side), 1) for side in box],
                }
                for box, score, label in zip(
                    self.boxes, self.scores, self.labels, strict=True
                )
            ]
        }


def predict_file(
    path: str | Path,
    image: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
) -> Prediction:
    """Predict by what a file says of itself, without its config.

    Args:
        path: File of an export.
        image: Image file.
        runtime: ``onnxruntime`` or ``openvino``; None is the first.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        FileNotFoundError: If there is no such file or image.
        ValueError: If the file cannot be used, or preparing or decoding its
            images takes the host.
    """
    meta, sessions = open_parts(path, runtime=runtime, threads=threads)
    if meta.preprocessing is None or meta.decoding is None:
        lacking = 'decoding' if meta.decoding is None else 'preprocessing'
        raise ValueError(
            f'{path} is of a {meta.model}, whose {lacking} takes the host: '
            'give its config with --config'
        )
    prepared = prepare_image(read_image(image), meta.preprocessing)
    raw = sessions[MAIN](torch.from_numpy(prepared.pixels))
    found = decode(
        {name: tensor.numpy() for name, tensor in raw.items()},
        meta.decoding,
        image_shape=prepared.image_shape,
        scale=prepared.scale,
        padded_shape=prepared.pixels.shape[-2:],
        original_shape=prepared.original_shape,
    )
    return Prediction(classes=meta.classes, **found)


def predict_with_host(
    path: str | Path,
    image: str | Path,
    *,
    config: Any,
    runtime: str | None = None,
    threads: int | None = None,
) -> Prediction:
    """Predict with a config: the host prepares and decodes.

    Args:
        path: File of an export.
        image: Image file.
        config: Config of the model, or its path.
        runtime: ``onnxruntime`` or ``openvino``; None is the first.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        FileNotFoundError: If there is no such file or image.
        ValueError: If the file cannot be used with the config.
    """
    if not Path(image).is_file():
        raise FileNotFoundError(f'there is no image {image}')
    config = load_config(config)
    model = build_model(config)
    meta = install_onnx(model, str(path), runtime=runtime, threads=threads)
    loader = config.get('test_dataloader') or config.get('val_dataloader')
    pipeline = leaf_datasets(loader['dataset'])[0].get('pipeline')
    steps = Compose([step for step in pipeline if not reads_labels(step)])
    sample = {
        'img_path': str(image),
        'img_id': 0,
        'seg_map_path': None,
        'reduce_zero_label': False,
        'seg_fields': [],
    }
    with torch.no_grad():
        result = model.test_step(pseudo_collate([steps(sample)]))[0]
    return dataclasses.replace(of_sample(result), classes=meta.classes)


def of_sample(sample: Any) -> Prediction:
    """Read the prediction of a data sample.

    Raises:
        ValueError: If it holds neither boxes nor a map of labels.
    """
    instances = getattr(sample, 'pred_instances', None)
    if instances is not None and 'bboxes' in instances:
        order = instances.scores.argsort(descending=True, stable=True)
        return Prediction(
            boxes=instances.bboxes[order].numpy(),
            scores=instances.scores[order].numpy(),
            labels=instances.labels[order].numpy(),
        )
    labels = getattr(sample, 'pred_sem_seg', None)
    if labels is not None:
        return Prediction(label_map=labels.data[0].numpy().astype(np.uint8))
    raise ValueError(
        f'{type(sample).__name__} has neither boxes nor a map of labels: '
        'evaluate the file with taskptq test'
    )
