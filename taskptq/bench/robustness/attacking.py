"""Attack images with the task's own loss, and evaluate what comes out.

A quantized model is attacked through its straight-through gradients, which may
hide what an attacker could do: the same images made for the float model
(transferred), and random signs, are rows of their own, and what holds is the
least of the three.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.bench.robustness.evaluation import (
    Outcome,
    RobustnessEvaluation,
    first_line,
)
from taskptq.bench.robustness.plan import AttackPlan
from taskptq.bench.robustness.subjects import EXPORTED, FLOAT, Subject
from taskptq.engine.contexts import seeded
from taskptq.robustness.attacks import Loss, attack

__all__ = ['AttackEvaluation', 'task_loss']

OWN = 'the attack is made for this model: see the row without "transferred"'
NO_GRADIENT = 'an exported file has no gradients: see the transferred attack'
NOT_PIXELS = (
    'the pipeline packs images that are no longer uint8, and the budget is '
    'in pixel values'
)
OTHER_IMAGE = (
    'the image depends on whether labels are loaded before or after the resize'
)


def task_loss(
    model: nn.Module,
    samples: Sequence[Any],
    *,
    collate: Any,
    seed: int = 0,
) -> Loss:
    """Return a model's training loss as a function of its images.

    Args:
        model: In eval mode.
        samples: Samples with labels in pixels of the input.
        collate: Function from samples to a batch.
        seed: Seed of what the loss draws, such as sampled proposals.
    """

    def loss(images: Sequence[Tensor]) -> Tensor:
        batch = collate(
            [
                {**copy.deepcopy({**sample, 'inputs': None}), 'inputs': image}
                for sample, image in zip(samples, images, strict=True)
            ]
        )
        with seeded(seed):
            data = model.data_preprocessor(batch, False)
            losses = model(**data, mode='loss')
            total: Tensor = model.parse_losses(losses)[0]
        return total

    return loss


class AttackEvaluation:
    """Attacks on the images of an evaluation.

    Args:
        evaluation: Its images, evaluator and batches.
    """

    def __init__(self, evaluation: RobustnessEvaluation) -> None:
        self.evaluation = evaluation
        self.images = evaluation.images

    def run(
        self,
        subjects: Sequence[Subject],
        plan: AttackPlan,
        *,
        source: Subject,
    ) -> dict[str, Outcome]:
        """Attack models.

        Args:
            subjects: The models to show the attacked images.
            plan: The attack.
            source: The float model, which transferred attacks are made for.

        Returns:
            Name of the model -> outcome.
        """
        outcomes: dict[str, Outcome] = {}
        for item in subjects:
            reason = refusal(item, plan)
            if reason:
                outcomes[item.name] = Outcome(reason=reason)
        rest = [item for item in subjects if item.name not in outcomes]
        same_for_all = plan.transferred or plan.name == 'random'
        groups = [rest] if same_for_all else [[item] for item in rest]
        for group in filter(None, groups):
            victim = source if same_for_all else group[0]
            try:
                outcomes |= self.evaluation.measure(
                    group, self.attacked(victim, plan)
                )
            except (NotImplementedError, RuntimeError, ValueError) as error:
                outcomes |= {
                    item.name: Outcome(reason=first_line(error))
                    for item in group
                }
        return outcomes

    def attacked(
        self, victim: Subject, plan: AttackPlan
    ) -> Iterator[list[Any]]:
        """Yield the samples of each batch with attacked images.

        Args:
            victim: Model whose loss is raised.
            plan: The attack.

        Raises:
            ValueError: If the images are no pixels, or there are no labels.
        """
        device = next(victim.model.parameters()).device
        for number, (samples, labelled) in enumerate(self.pairs(plan)):
            images = [pixels(sample) for sample in samples]
            if any(
                not torch.equal(pixels(sample), image)
                for sample, image in zip(labelled, images, strict=True)
            ):
                raise ValueError(OTHER_IMAGE)
            loss = task_loss(
                victim.model, labelled, collate=self.images.collate
            )
            found = attack(
                plan.name,
                [image.float().to(device) for image in images],
                loss,
                epsilon=plan.epsilon,
                seed=self.images.seed * 1_000_003 + number,
            )
            yield [
                {**sample, 'inputs': image.detach().cpu()}
                for sample, image in zip(samples, found, strict=True)
            ]

    def pairs(self, plan: AttackPlan) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield the samples of each batch as tested, and with labels."""
        tested = self.images.reader().samples()
        if plan.name == 'random':
            yield from ((samples, samples) for samples in tested)
            return
        labelled = self.images.labelled_reader().samples()
        yield from zip(tested, labelled, strict=True)


def refusal(subject: Subject, plan: AttackPlan) -> str:
    """Return why an attack is not made on a model, '' if it is."""
    if plan.transferred and subject.kind == FLOAT:
        return OWN
    gradient = plan.name != 'random' and not plan.transferred
    return NO_GRADIENT if gradient and subject.kind == EXPORTED else ''


def pixels(sample: Any) -> Tensor:
    """Return the image of a sample.

    Raises:
        ValueError: If it is not uint8.
    """
    image = sample.get('inputs') if isinstance(sample, dict) else None
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        raise ValueError(NOT_PIXELS)
    return image
