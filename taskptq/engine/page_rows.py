"""Predictions of all models on one test image, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskptq.analysis.page.agreement import Agreement, compare
from taskptq.analysis.page.photos import read_image
from taskptq.analysis.page.pictures import draw
from taskptq.analysis.page.predictions import Prediction, read_prediction
from taskptq.calibration.calibrate import calibration_mode
from taskptq.engine.pipeline import run_batch

__all__ = ['ImageRow', 'predict_row']


@dataclass(kw_only=True)
class ImageRow:
    """All predictions on one image."""

    sample: Any
    size: tuple[int, int]
    clean: Prediction | None
    noisy: dict[str, Prediction]
    agreements: dict[str, Agreement]

    @property
    def is_empty(self) -> bool:
        """Whether no model found anything."""
        found = [*self.noisy.values(), *([self.clean] if self.clean else [])]
        return all(one.is_empty for one in found)

    @property
    def score(self) -> float:
        """Greatest disagreement of a file with the float model."""
        return max((a.score for a in self.agreements.values()), default=0.0)

    def picture(
        self, *, kind: str, classes: Sequence[str], score: float
    ) -> dict[str, Any]:
        """Draw it; see ``pictures.draw``."""
        path = getattr(self.sample, 'img_path', None)
        image = None if path is None else read_image(path)
        drawn = draw(
            image,
            self.clean,
            self.noisy,
            self.agreements,
            classes=classes,
            score=score,
            size=self.size,
        )
        name = 'image' if path is None else _short_name(str(path))
        return {**drawn, 'name': name, 'kind': kind}


def predict_row(
    models: Mapping[str, nn.Module],
    clean: nn.Module | None,
    batch: Any,
    *,
    score: float,
) -> ImageRow:
    """Run every model on one image.

    Args:
        models: Title -> quantized model.
        clean: Float model, or None.
        batch: Batch of the image.
        score: Least confidence of objects; those down to half of it are
            kept for ``agreement.compare``.
    """
    sample, reference = None, None
    if clean is not None:
        sample, reference = _predict(clean, batch, score=score / 2)
    found: dict[str, Prediction] = {}
    for title, model in models.items():
        sample, found[title] = _predict(model, batch, score=score / 2)
    size = _size_of(sample)
    agreements = {
        title: compare(reference, noisy, score=score, size=size)
        for title, noisy in found.items()
        if reference is not None
    }
    return ImageRow(
        sample=sample,
        size=size,
        clean=reference,
        noisy=found,
        agreements=agreements,
    )


def _predict(
    model: nn.Module, batch: Any, *, score: float
) -> tuple[Any, Prediction]:
    """Run a model on a batch of one image."""
    with calibration_mode(model):
        outputs = run_batch(model, batch)
    is_list = isinstance(outputs, (list, tuple)) and len(outputs) > 0
    sample = outputs[0] if is_list else outputs
    return sample, read_prediction(sample, score=score)


def _size_of(sample: Any) -> tuple[int, int]:
    """Return height and width that a sample's coordinates refer to."""
    shape = getattr(sample, 'ori_shape', None)
    if isinstance(shape, (list, tuple)) and len(shape) >= 2:
        return int(shape[0]), int(shape[1])
    return 1, 1


def _short_name(path: str) -> str:
    """Return an image's name and its folder's, as names repeat in folders.

    >>> _short_name('/data/tusimple/clips/0313/20.jpg')
    '0313/20.jpg'
    """
    return '/'.join(Path(path).parts[-2:])
