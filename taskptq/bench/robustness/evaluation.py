"""Evaluate several models under one noise, each image read once."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import EVALUATOR
from mmengine.runner import Runner

from taskptq.bench.metric_numbers import finite_numbers
from taskptq.bench.robustness.images import NoisyImages, NoisyReader
from taskptq.bench.robustness.subjects import Subject
from taskptq.engine.config_model import build_model
from taskptq.robustness.names import Noise
from taskptq.robustness.packages import MissingNoisePackageError
from taskptq.robustness.switches import model_noise

__all__ = ['Outcome', 'RobustnessEvaluation']

# Images that are run in search of a call that a model noise changes.
PROBED = 2


@dataclass(kw_only=True)
class Outcome:
    """What came out for one model.

    Args:
        metrics: Name -> value; empty if nothing was measured or predicted.
        reason: Why nothing was measured, '' otherwise.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ''


class RobustnessEvaluation:
    """The test set and evaluator of a config, for models under noise.

    Args:
        config: Config of the float model.
        max_images: Number of test images; None takes all.
        seed: Seed of random noises.

    Attributes:
        model: The config's model, with random weights.
        images: The test set.

    Raises:
        ValueError: If the config has no test set or no evaluator.
    """

    def __init__(
        self,
        config: Config,
        *,
        max_images: int | None = None,
        seed: int = 0,
    ) -> None:
        for key in ('test_dataloader', 'test_evaluator'):
            if config.get(key) is None:
                raise ValueError(
                    f'the config sets no {key}: give a config that can be '
                    'tested'
                )
        # Metrics log their tables.
        MMLogger.get_instance(
            f'robustness_{time.time_ns()}', log_level='WARNING'
        )
        loader_config = copy.deepcopy(config.test_dataloader)
        # Nothing is read by workers: processes share the noises instead.
        loader_config.num_workers = 0
        loader_config.persistent_workers = False
        self.evaluator = copy.deepcopy(config.test_evaluator)
        # Not a Runner, which formats the config four times: two seconds.
        with redirect_stdout(io.StringIO()):
            self.model = build_model(config)
            loader = Runner.build_dataloader(loader_config, seed=seed)
        self.images = NoisyImages(loader, max_images=max_images, seed=seed)

    def run(
        self, subjects: Sequence[Subject], noises: Sequence[Noise]
    ) -> dict[str, Outcome]:
        """Evaluate models under noises.

        Args:
            subjects: The models.
            noises: All at once; none is the clean test.

        Returns:
            Name of the model -> outcome.
        """
        outcomes = {
            subject.name: Outcome(reason=reason)
            for subject in subjects
            if (reason := refusal(subject, noises))
        }
        rest = [item for item in subjects if item.name not in outcomes]
        try:
            reader = self.images.reader(noises)
            reason = reader.untouched()
        except (MissingNoisePackageError, ValueError) as error:
            reason = str(error)
        if reason:
            return outcomes | {
                item.name: Outcome(reason=reason) for item in rest
            }
        for item in list(rest):
            problem = self._probe(item, reader, noises)
            if problem:
                outcomes[item.name] = Outcome(reason=problem)
                rest.remove(item)
        return outcomes | self.measure(rest, reader.samples(), noises=noises)

    def _probe(
        self, subject: Subject, reader: NoisyReader, noises: Sequence[Noise]
    ) -> str:
        """Return why the model noises do not concern a model, or ''."""
        if not any(noise.on_model for noise in noises):
            return ''
        lacking: dict[str, str] = {}
        for number, samples in enumerate(reader.samples(1)):
            if number == PROBED:
                break
            with model_noise(subject.model, noises) as counts:
                try:
                    self.step(subject, self.images.collate(samples))
                except (RuntimeError, ValueError) as error:
                    return f'the model cannot run so: {first_line(error)}'
            lacking = counts.lacking()
            if not lacking:
                return ''
        return '; '.join(lacking.values())

    def measure(
        self,
        subjects: Sequence[Subject],
        batches: Iterable[Sequence[Any]],
        *,
        noises: Sequence[Noise] = (),
    ) -> dict[str, Outcome]:
        """Run models on the same batches, each with its own evaluator.

        Args:
            subjects: The models.
            batches: Samples of each batch.
            noises: Model noises to switch on.
        """
        evaluators = {item.name: self.build_evaluator() for item in subjects}
        image_ids: list[Any] = []
        for samples in batches if subjects else ():
            for item in subjects:
                # Models write into the samples of their batch.
                batch = self.images.collate(copy.deepcopy(samples))
                with model_noise(item.model, noises):
                    outputs = self.step(item, batch)
                evaluators[item.name].process(
                    data_samples=outputs, data_batch=batch
                )
            image_ids += ids_of(samples)
        return {
            name: Outcome(metrics=self.finish(evaluator, image_ids))
            for name, evaluator in evaluators.items()
        }

    def step(self, subject: Subject, batch: Any) -> Any:
        """Run a model's test step."""
        with torch.no_grad():
            return subject.model.test_step(batch)

    def build_evaluator(self) -> Any:
        """Build the config's evaluator anew."""
        settings = copy.deepcopy(self.evaluator)
        with redirect_stdout(io.StringIO()):
            if isinstance(settings, dict) and 'metrics' in settings:
                settings.setdefault('type', 'Evaluator')
                evaluator = EVALUATOR.build(settings)
            else:
                evaluator = Evaluator(settings)
        evaluator.dataset_meta = self.images.metainfo
        return evaluator

    def finish(self, evaluator: Any, image_ids: list[Any]) -> dict[str, float]:
        """Compute the metrics of a part of the set.

        Metrics that read a whole annotation file would count the other
        images as missed; mmdet's take the images that count as ``img_ids``.
        """
        for metric in evaluator.metrics:
            if hasattr(metric, 'img_ids') and image_ids:
                metric.img_ids = image_ids
        # pycocotools prints its table.
        with redirect_stdout(io.StringIO()):
            found: Mapping[str, Any] = evaluator.evaluate(len(self.images))
        return finite_numbers(found)


def refusal(subject: Subject, noises: Sequence[Noise]) -> str:
    """Return why noises cannot concern a model, '' if they may."""
    return '; '.join(filter(None, map(subject.refusal, noises)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def ids_of(samples: Sequence[Any]) -> list[Any]:
    """Return the ``img_id`` of samples that have one."""
    found = []
    for sample in samples:
        meta = sample.get('data_samples') if isinstance(sample, dict) else None
        image_id = getattr(meta, 'img_id', None)
        if image_id is not None:
            found.append(image_id)
    return found
