"""Stages of a training: which part is quantized, with which grids, how long.

TerViT (arXiv 2201.08050) trains 8-bit weights before ternary ones, BinaryDM
(arXiv 2404.05662) binarizes the middle of a network first, Q-DETR (CVPR 2023)
the backbone first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskptq.core.settings import (
    Items,
    Pattern,
    SettingError,
    Whole,
    check_keys,
    refuse,
    shown,
)
from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.recipe_source import read_recipe
from taskptq.prepare import QConfig
from taskptq.prepare.patterns import matches

__all__ = ['WHOLE', 'Stage', 'Stages', 'is_in', 'named_stages']

KEYS = ('part', 'recipe', 'qconfig', 'epochs')
PARTS = Items(of=Pattern(), what='a list of names', least=1)
EPOCHS = Whole(low=1, high=1_000_000, optional=True)
# Parts that `stage=1|2` quantizes; () is the whole model (Q-DETR, 5.1).
NAMED: dict[int, tuple[str, ...]] = {1: ('backbone',), 2: ()}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Args:
        parts: Names or patterns of modules whose layers are quantized; none
            is the whole model.
        qconfig: Its quantizers; None is the training's own.
        epochs: Epochs; None is the rest of the training.
    """

    parts: tuple[str, ...] = ()
    qconfig: QConfig | None = None
    epochs: int | None = None

    def contains(self, name: str) -> bool:
        """Whether a layer or quantizer of this name is quantized."""
        return not self.parts or any(is_in(name, p) for p in self.parts)

    def check(self, model: nn.Module, *, where: str) -> None:
        """Refuse parts that the model lacks.

        Args:
            model: Model to train.
            where: What names them, for errors.

        Raises:
            ValueError: If the model has no module of that name.
        """
        names = [name for name, _ in model.named_modules() if name]
        for part in self.parts:
            if not any(is_in(name, part) for name in names):
                raise ValueError(
                    f'{where} quantizes only model.{part}, but '
                    f'{type(model).__name__} has none: train with stage=2, '
                    'or name another part'
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        qconfig = None
        if self.qconfig is not None:
            qconfig = to_plain(self.qconfig.to_dict())
        return {
            'part': list(self.parts) or None,
            'qconfig': qconfig,
            'epochs': self.epochs,
        }


# The stage of a training that quantizes all there is from its first step.
WHOLE = Stage()


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of one training, in order; the last one's grids ship.

    Args:
        items: The stages.
        number: 1 or 2, how a single stage was named; see ``QATHook.stage``.
    """

    items: tuple[Stage, ...]
    number: int = 2

    def __len__(self) -> int:
        """Return the number of stages."""
        return len(self.items)

    def at(self, epoch: int) -> int:
        """Return the index of the stage that an epoch belongs to.

        Args:
            epoch: Finished epochs.
        """
        start = 0
        for index, stage in enumerate(self.items[:-1]):
            assert stage.epochs is not None
            start += stage.epochs
            if epoch < start:
                return index
        return len(self.items) - 1

    def title(self, index: int) -> str:
        """Return how reports name a stage: ``stage 1``."""
        number = index + 1 if len(self) > 1 else self.number
        return f'stage {number}'

    def check_length(self, max_epochs: int | None) -> None:
        """Refuse a training that ends before its last stage.

        Args:
            max_epochs: Epochs of the training; None if it counts no epochs.

        Raises:
            ValueError: If it does.
        """
        if len(self) == 1:
            return
        if max_epochs is None:
            raise ValueError(
                'stages are counted in epochs: use an EpochBasedTrainLoop, '
                'or remove stages'
            )
        before = sum(stage.epochs or 0 for stage in self.items[:-1])
        if before >= max_epochs:
            raise ValueError(
                f'the stages before the last one take {before} epochs, but '
                f'train_cfg.max_epochs is {max_epochs}: train longer, or '
                'shorten them'
            )

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain types."""
        return [stage.to_dict() for stage in self.items]

    @classmethod
    def from_list(cls, given: Any) -> Stages:
        """Read ``QATHook.stages``.

        Args:
            given: Dicts with ``part`` (a name or a list; None is all),
                ``recipe`` or ``qconfig`` (None is the hook's) and
                ``epochs``.

        Raises:
            SettingError: If a value is invalid; names it.
        """
        if (
            isinstance(given, str | bytes | Mapping)
            or not isinstance(given, Sequence)
            or not given
        ):
            raise SettingError(
                'stages', f'={shown(given)}: give a list of dicts'
            )
        items = tuple(
            _read(one, name=f'stages[{number}]')
            for number, one in enumerate(given)
        )
        for number, stage in enumerate(items[:-1]):
            if stage.epochs is None:
                raise SettingError(
                    f'stages[{number}]',
                    ' lacks epochs, which only the last stage may leave out: '
                    'add them',
                )
        if items[-1].qconfig is not None:
            raise SettingError(
                f'stages[{len(items) - 1}]',
                ' is the last one, whose grids are those of the hook: move '
                'its recipe to QATHook(recipe=...)',
            )
        return cls(items=items)


def named_stages(number: int) -> Stages:
    """Return the single stage that ``stage=1`` or ``stage=2`` stands for."""
    return Stages(items=(Stage(parts=NAMED[number]),), number=number)


def is_in(name: str, part: str) -> bool:
    """Whether a name is a part, lies in it, or matches it as a pattern."""
    return name == part or name.startswith(f'{part}.') or matches(name, part)


def _read(given: Any, *, name: str) -> Stage:
    if not isinstance(given, Mapping):
        raise refuse(name, given, 'give a dict')
    check_keys(given, KEYS, name=name)
    part = given.get('part')
    if isinstance(part, str):
        part = [part]
    parts = () if part is None else PARTS.read(part, name=f'{name}.part')
    recipe, qconfig = given.get('recipe'), given.get('qconfig')
    if recipe is not None and qconfig is not None:
        raise SettingError(
            name, ' has both a recipe and a qconfig: remove one of them'
        )
    if recipe is not None:
        qconfig = read_recipe(recipe)['qconfig']
    return Stage(
        parts=parts,
        qconfig=None if qconfig is None else build_qconfig(qconfig),
        epochs=EPOCHS.read(given.get('epochs'), name=f'{name}.epochs'),
    )
