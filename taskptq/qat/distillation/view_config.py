"""Settings of one view: taps x regions x weights x loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from taskptq.core.settings import (
    Choice,
    Items,
    Number,
    Pattern,
    SettingError,
    Text,
    check_arguments,
    check_fields,
    check_keys,
    refusing,
    setting,
    shown,
)
from taskptq.engine.builder import build_loss, registered_part, spelled_out
from taskptq.methods.feature_losses import FeatureLoss
from taskptq.qat.distillation.importance import WEIGHTS, Importance
from taskptq.qat.distillation.regions import REGIONS, Region
from taskptq.registry import RECON_LOSSES

__all__ = ['ViewConfig']

NAMES = Items(of=Text(), what='a list of taps', least=1, most=100)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Settings of an item of ``distillation.views``.

    Args:
        taps: What is compared: ``'neck'``, ``'backbone'``, ``'logits'``;
            of attentions ``'query'``, ``'key'``, ``'query_key'``,
            ``'attention'`` (the maps) or ``'attended'``; or patterns of
            module names, whose outputs are compared. One or a list.
        loss: A loss between features, by name or ``dict(type=...)``; see
            ``FeatureLoss``.
        weight: Its weight, >= 0.
        regions: Where: ``'all'``, ``'annotations'``, ``'queries'``,
            ``'discrepancy'``, ``'foreground'``, ``'classes'``, or
            ``dict(type=..., ...)`` with their settings.
        weights: How positions count: ``'uniform'``, ``'foreground'``,
            ``'entropy'``, or ``dict(type=..., ...)``.
        within: Pattern of the modules that are tapped; None is all.

    Raises:
        SettingError: If a value is invalid, or they do not go together.
    """

    taps: tuple[str, ...]
    loss: Mapping[str, Any]
    weight: float = setting(1.0, Number(low=0, high=1e6))
    regions: Mapping[str, Any] | str = 'all'
    weights: Mapping[str, Any] | str = 'uniform'
    within: str | None = setting(None, Pattern(optional=True))

    def __post_init__(self) -> None:
        """Check the values and spell them out."""
        check_fields(self)
        taps = (self.taps,) if isinstance(self.taps, str) else self.taps
        loss = registered_part(RECON_LOSSES, self.loss)
        for name, value in {
            'taps': NAMES.read(taps, name='taps'),
            'loss': loss,
            'regions': _part(self.regions, REGIONS, name='regions'),
            'weights': _part(self.weights, WEIGHTS, name='weights'),
        }.items():
            object.__setattr__(self, name, value)
        reads = self.build_loss().reads
        if reads != 'rows' and (
            self.regions['type'] != 'all' or self.weights['type'] != 'uniform'  # type: ignore[index]
        ):
            raise SettingError(
                'loss',
                f'={shown(loss["type"])} compares {reads}, not single '
                "positions: use regions='all' and weights='uniform'",
            )

    @classmethod
    def from_dict(cls, config: Any, *, name: str = 'view') -> ViewConfig:
        """Read a dict of a config.

        Args:
            config: The settings; ``taps`` and ``loss`` are required.
            name: Dotted name of the dict, for errors.

        Raises:
            SettingError: If a key is unknown or missing, or a value invalid.
        """
        if not isinstance(config, Mapping):
            raise SettingError(name, f'={shown(config)}: give a dict')
        check_keys(config, [item.name for item in fields(cls)], name=name)
        missing = [key for key in ('taps', 'loss') if key not in config]
        if missing:
            raise SettingError(name, f' lacks the key {missing[0]!r}: add it')
        with refusing(name, config):
            return cls(**config)

    def build_loss(self) -> FeatureLoss:
        """Build the loss.

        Raises:
            SettingError: If it does not compare features.
        """
        with refusing('loss', self.loss):
            loss = build_loss(self.loss)
        if not isinstance(loss, FeatureLoss):
            raise SettingError(
                'loss',
                f'={shown(self.loss["type"])} compares outputs of '
                'reconstruction, not features: use squared_feature, '
                'gaussian_likelihood, gram, ranking or another FeatureLoss',
            )
        return loss

    def build_region(self) -> Region:
        """Build the choice of positions."""
        return _build(self.regions, REGIONS)  # type: ignore[no-any-return]

    def build_weights(self) -> Importance:
        """Build the weights of positions."""
        return _build(self.weights, WEIGHTS)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {**asdict(self), 'taps': list(self.taps)}


def _part(
    given: Any, known: Mapping[str, type], *, name: str
) -> dict[str, Any]:
    """Return a choice as a dict with a type, after building it once."""
    settings = spelled_out(given)
    if not isinstance(settings, Mapping) or 'type' not in settings:
        raise SettingError(
            name, f'={shown(given)}: give a name or dict(type=...)'
        )
    settings = dict(settings)
    kind = Choice(choices=tuple(known)).read(settings['type'], name=name)
    check_arguments(known[kind], settings, name=name, also=['type'])
    with refusing(name, settings):
        _build(settings, known)
    return settings


def _build(settings: Any, known: Mapping[str, type]) -> Any:
    arguments = dict(settings)
    return known[arguments.pop('type')](**arguments)
