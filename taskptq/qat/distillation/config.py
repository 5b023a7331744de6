"""Settings of ``distillation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from taskptq.core.settings import (
    Choice,
    Flag,
    Number,
    SettingError,
    check_fields,
    check_keys,
    setting,
    shown,
)
from taskptq.engine.hook_settings import check_teacher
from taskptq.methods.qdetr.matching import METRICS
from taskptq.qat.distillation.view_config import ViewConfig

__all__ = ['DistillationConfig']

MATCHINGS = ('argmax', 'hungarian')
LAYERS = ('last', 'all')
WEIGHT = Number(low=0, high=1e6)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Settings of ``distillation``.

    Args:
        weight: lambda of the paper, >= 0.
        normalize: Divide L_DRD by the root mean square norm of the teacher's
            features. The paper does not, and its lambda suits the features
            of its models: with longer features, L_DRD would dominate the
            detector's own loss.
        box_weight: Weight of the box term, >= 0; not in the paper. It
            compares each foreground query with the teacher's query of the
            same index: 5 L1 + 2 (1 - GIoU).
        class_weight: Weight of the class term, >= 0; not in the paper. It
            compares the logits of each query with the teacher's of the same
            index: KL divergence, mean over the foreground plus mean over the
            rest.
        tau: Similarity to a ground truth's best query that makes a query
            foreground, in [0, 1]; 1 keeps none.
        mu1: Weight of box similarity in matching.
        mu2: Weight of the boxes' L1 distance in matching.
        matching: 'argmax', or 'hungarian' to use each teacher query at most
            once.
        metric: 'giou', or 'nwd' for tiny objects.
        layers: Decoder layers whose features are compared: 'last', or 'all'
            (their mean), each matched by its own boxes.
        fqm: False compares all queries, each with the teacher's of the same
            index.
        teacher: ``dict(config=..., checkpoint=...)`` of another float model;
            None is the float model that training starts from.
        views: Dicts of ``ViewConfig``: losses between features of any
            model. With them ``weight`` defaults to 0, and where all weights
            of queries are 0 no decoder is needed.

    Raises:
        ValueError: If a value is invalid.
    """

    weight: float = setting(2.5, WEIGHT)
    normalize: bool = setting(False, Flag())
    box_weight: float = setting(0.0, WEIGHT)
    class_weight: float = setting(0.0, WEIGHT)
    tau: float = setting(0.6, Number(low=0, high=1))
    mu1: float = setting(2.0, WEIGHT)
    mu2: float = setting(5.0, WEIGHT)
    matching: str = setting('argmax', Choice(choices=MATCHINGS))
    metric: str = setting('giou', Choice(choices=METRICS))
    layers: str = setting('last', Choice(choices=LAYERS))
    fqm: bool = setting(True, Flag())
    teacher: Mapping[str, Any] | None = None
    views: tuple[ViewConfig, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, name='distillation')
        object.__setattr__(self, 'views', read_views(self.views))
        teacher = self.teacher
        if teacher is not None:
            check_teacher(teacher, name='distillation.teacher')
        if teacher is not None and not self.fqm:
            raise ValueError(
                'distillation.fqm=False pairs queries by index, but the '
                'queries of another teacher have another order: remove '
                'teacher'
            )
        if teacher is not None and self.agrees:
            raise ValueError(
                'distillation.box_weight and class_weight pair queries by '
                'index, but the queries of another teacher have another '
                'order: remove them or teacher'
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DistillationConfig:
        """Read the config's dict.

        Raises:
            SettingError: If a key is unknown or a value invalid.
        """
        known = [item.name for item in fields(cls)]
        check_keys(config, known, name='distillation')
        own = {'weight': 0.0} if config.get('views') else {}
        return cls(**{**own, **config})

    @property
    def agrees(self) -> bool:
        """Whether the box or the class term is used."""
        return bool(self.box_weight or self.class_weight)

    @property
    def compares_queries(self) -> bool:
        """Whether the queries of a decoder are compared."""
        return bool(self.weight or self.agrees or not self.views)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types; without ``views`` if there are none."""
        plain = asdict(self)
        views = [view.to_dict() for view in self.views]
        plain.pop('views')
        return {**plain, 'views': views} if views else plain


def read_views(views: Any) -> tuple[ViewConfig, ...]:
    """Read the settings of views.

    Raises:
        SettingError: If one is invalid; names it.
    """
    if isinstance(views, str | bytes) or not isinstance(views, Sequence):
        raise SettingError(
            'distillation.views', f'={shown(views)}: give a list of dicts'
        )
    return tuple(
        view
        if isinstance(view, ViewConfig)
        else ViewConfig.from_dict(view, name=f'distillation.views[{number}]')
        for number, view in enumerate(views)
    )
