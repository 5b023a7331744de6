"""Settings of reconstruction."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from taskptq.prepare.blocks import SCOPES

ROUNDINGS = ('adaround', 'gptq', 'nearest')
NETWORK_SETTINGS = (
    'weight_lr', 'scale_lr', 'learn_scales', 'drop_prob', 'rounding_weight',
    'warmup', 'beta_start', 'beta_end', 'patience', 'straight_through',
    'keep_better'
)


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of reconstruction.

    The published recipes run 20,000 steps with weight_lr 1e-3; at a few
    hundred steps the roundings need 0.1 to 0.3 to be decided at all: seen in
    single trial runs of one detector with 2-bit weights.

    Args:
        rounding: 'adaround' learns it, 'gptq' solves it in closed form layer
            by layer, 'nearest' keeps it (only scales learn).
        scope: 'layer', 'block' or 'network'.
        steps: Optimizer steps of each unit.
        network_steps: Optimizer steps on the whole network once all layers
            or blocks are done; the loss then acts there alone, and the units
            are trained on the mean squared error. Needs the model's adapter.
        network_train: Name patterns of the layers that are trained on the
            whole network, e.g. ``('decoder*', 'bbox_head*')``; the others
            stay as they are. Empty: all.
        straight_through: Train roundings that are hard in the forward pass,
            without a penalty: a whole network of soft ones can fit the float
            one with few of them decided.
        network_batch_size: Images of a minibatch on the whole network; None
            takes whole calibration batches.
        keep_better: Measure the loss of all calibration batches before and
            after steps on the whole network, and take the steps back if it
            has not fallen. Two passes over the set.
        network: Settings that ``network_steps`` have of their own, e.g.
            ``dict(weight_lr=0.05, drop_prob=0.0)``.
        batch_size: Images of a minibatch, where rows can be drawn.
        rows_per_image: Most rows per image where rows are not images.
        weight_lr: Adam's learning rate of the roundings; held for half of
            the steps, then cosine-annealed to 0.
        scale_lr: The same of activation scales, relative to each scale;
            cosine-annealed to 0.
        learn_scales: Learn activation scales (needs LSQQuantizer).
        drop_prob: QDrop's probability of the float value; 0 is BRECQ.
        rounding_weight: Weight of the rounding penalty, relative to the
            unit's loss when the penalty sets in.
        warmup: Share of the steps without the penalty.
        beta_start: Exponent of the penalty at first (AdaRound, Eq. 24).
        beta_end: Exponent at the end.
        skip_below: Leave a unit rounded to nearest if its loss is already
            below this (noise to signal, for the default loss): 8-bit units
            have nothing to gain; 0 trains every unit.
        patience: Stop a unit when its loss has not fallen by 1 % over so
            many steps and 99.9 % of its roundings are decided; None: never.
        autocast: None, or 'bfloat16' to run the units in mixed precision.
        seed: Seed of minibatches and drops.
        cache_bytes: Memory budget of the activation cache.
        blocks: Name patterns of further blocks.
        gptq_damping: Share of the Hessian's mean diagonal added to it.

    Raises:
        ValueError: If a value cannot be.
    """

    rounding: str = 'adaround'
    scope: str = 'block'
    steps: int = 400
    network_steps: int = 0
    network_train: tuple[str, ...] = ()
    network_batch_size: int | None = None
    straight_through: bool = False
    keep_better: bool = False
    network: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    rows_per_image: int = 32
    weight_lr: float = 0.25
    scale_lr: float = 5e-3
    learn_scales: bool = True
    drop_prob: float = 0.5
    rounding_weight: float = 1.0
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    skip_below: float = 1e-4
    patience: int | None = None
    autocast: str | None = None
    seed: int = 0
    cache_bytes: int = 2 << 30
    blocks: tuple[str, ...] = ()
    gptq_damping: float = 0.01

    def __post_init__(self) -> None:
        for known in fields(self):
            value = _plain(known, getattr(self, known.name))
            object.__setattr__(self, known.name, value)
        _choose('rounding', self.rounding, ROUNDINGS)
        _choose('scope', self.scope, SCOPES)
        _choose('autocast', self.autocast, (None, 'bfloat16'))
        for name in ('steps', 'batch_size', 'rows_per_image'):
            if getattr(self, name) < 1:
                raise ValueError(
                    f'reconstruction.{name}={getattr(self, name)} must be at '
                    'least 1'
                )
        if self.network_steps < 0 or (
            self.network_steps and self.scope == 'network'
        ):
            raise ValueError(
                f'reconstruction.network_steps={self.network_steps} must be '
                "0, or positive after scope='layer' or 'block'"
            )
        if self.network_steps and self.rounding == 'gptq':
            raise ValueError(
                'reconstruction.network_steps='
                f"{self.network_steps} cannot follow rounding='gptq': choose "
                "'adaround' or 'nearest'"
            )
        self._check_network()
        for name in ('drop_prob', 'warmup'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f'reconstruction.{name}={getattr(self, name)} must lie '
                    'in [0, 1]'
                )

    def _check_network(self) -> None:
        size = self.network_batch_size
        if size is not None and size < 1:
            raise ValueError(
                f'reconstruction.network_batch_size={size} must be at least '
                '1, or None'
            )
        unknown = sorted(set(self.network) - set(NETWORK_SETTINGS))
        if unknown:
            raise ValueError(
                f'reconstruction.network has unknown key {unknown[0]!r}: '
                f'known are {", ".join(NETWORK_SETTINGS)}'
            )
        for name in ('network_train', 'keep_better'):
            value = getattr(self, name)
            if value and not (self.network_steps or self.scope == 'network'):
                raise ValueError(
                    f'reconstruction.{name}={value} is of training on the '
                    "whole network: set network_steps, or scope='network'"
                )
        if self.network and not self.network_steps:
            raise ValueError(
                f'reconstruction.network={dict(self.network)} needs '
                'network_steps'
            )
        if self.network:
            self.of_network()

    def of_network(self) -> ReconstructionConfig:
        """Return the settings of the ``network_steps``."""
        return replace(
            self,
            scope='network',
            steps=self.network_steps,
            network_steps=0,
            network={},
            **self.network,
        )

    def of_units(self) -> ReconstructionConfig:
        """Return the settings of the units alone, without network steps."""
        return replace(
            self,
            network_steps=0,
            network_train=(),
            network_batch_size=None,
            keep_better=False,
            network={},
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ReconstructionConfig:
        """Read the plain form.

        Raises:
            ValueError: On an unknown key.
        """
        known = [known_field.name for known_field in fields(cls)]
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise ValueError(
                f'reconstruction has unknown key {unknown[0]!r}: known are '
                f'{", ".join(known)}'
            )
        values = dict(config)
        for name in ('blocks', 'network_train'):
            if isinstance(values.get(name), str):
                raise ValueError(
                    f'reconstruction.{name}={values[name]!r} must be a list '
                    'of patterns'
                )
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        plain = {
            'blocks': list(self.blocks),
            'network_train': list(self.network_train),
            'network': dict(self.network),
        }
        return {**asdict(self), **plain}


def _plain(setting: Field[Any], value: Any) -> Any:
    """Return a value, a scalar of numpy's as Python's.

    Raises:
        ValueError: If a switch or number is something else.
    """
    default = setting.default
    optional = setting.name in ('network_batch_size', 'patience')
    if optional and value is None:
        return value
    if isinstance(default, bool):
        wanted, fits = 'True or False', isinstance(value, bool)
    elif isinstance(default, int) or optional:
        wanted, fits = 'a whole number', isinstance(value, Integral)
    elif isinstance(default, float):
        wanted, fits = 'a number', isinstance(value, Real)
    else:
        return value
    if not fits or isinstance(value, bool) != isinstance(default, bool):
        hint = ''
        if isinstance(value, str) and 'e' in value.lower():
            hint = ' (YAML takes 1e-3 for text: write 1.0e-3)'
        raise ValueError(
            f'reconstruction.{setting.name}={value!r} must be {wanted}{hint}'
        )
    if isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _choose(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f'reconstruction.{name}={value!r}: choose one of {choices}'
        )
