"""Settings of ``calibration``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from taskptq.core.setting_error import SettingError
from taskptq.core.settings import (
    SEED,
    Choice,
    Flag,
    Items,
    Rule,
    Whole,
    check_fields,
    check_keys,
    setting,
)
from taskptq.robustness.names import parse_noises

__all__ = ['CalibrationConfig']

UNREACHED = ('error', 'float')
# Among noises, an image as it is.
CLEAN = 'clean'


class DatasetRule(Rule):
    """Rule for a dataset config or a built dataset."""

    def convert(self, value: Any, name: str) -> Any:
        """Return the dataset."""
        if isinstance(value, Mapping):
            if 'type' not in value:
                raise TypeError
        elif isinstance(value, (str, bytes, list, tuple)) or not (
            hasattr(value, '__getitem__') and hasattr(value, '__len__')
        ):
            raise TypeError
        return value

    def allowed(self) -> str:
        """Name both."""
        return 'a dataset, or its config with a type'


class TransformRule(Rule):
    """Rule for a transform config or a built transform."""

    def convert(self, value: Any, name: str) -> Any:
        """Return the transform."""
        if isinstance(value, Mapping):
            if 'type' not in value:
                raise TypeError
        elif not callable(value):
            raise TypeError
        return value

    def allowed(self) -> str:
        """Name both."""
        return 'a transform, or its config with a type'


class NoiseRule(Rule):
    """Rule for the name of image noises, or 'clean'."""

    def convert(self, value: Any, name: str) -> str:
        """Return the name."""
        if not isinstance(value, str):
            raise TypeError
        if value != CLEAN:
            try:
                noises = parse_noises(value)
            except ValueError as error:
                raise SettingError(name, f': {error}') from error
            if any(noise.on_model for noise in noises):
                raise ValueError
        return value

    def allowed(self) -> str:
        """Name some."""
        return "an image noise such as 'fog=3', or 'clean'"


DATASET = DatasetRule(optional=True)
PIPELINE = Items(
    of=TransformRule(), what='a list of transforms', least=1, optional=True
)
NOISE = Items(
    of=NoiseRule(), what='a list of image noises', least=1, optional=True
)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Settings of ``calibration``.

    Args:
        num_images: Number of images over all ranks, at least 1.
        dataset: Dataset config or dataset, whose wrappers are removed; None
            uses that of ``train_dataloader``.
        pipeline: Transforms; None uses those of the evaluation set.
        batch_size: Images per batch; None uses that of the evaluation.
        seed: Seed for choosing the images.
        allow_overlap: Accept images that the evaluation also uses.
        unreached: Handling of quantizers that no image reached: 'error'
            refuses them, 'float' leaves them float.
        noise: Image noises, of which each image gets one, chosen by its name
            and the seed; see ``taskptq.robustness.names``. 'clean' among
            them leaves an image as it is.

    Raises:
        SettingError: If a value is invalid.
    """

    num_images: int = setting(256, Whole(low=1))
    dataset: Any = field(default=None, metadata={'rule': DATASET})
    pipeline: Any = field(default=None, metadata={'rule': PIPELINE})
    batch_size: int | None = setting(
        None, Whole(low=1, high=1 << 16, optional=True)
    )
    seed: int = setting(0, SEED)
    allow_overlap: bool = setting(False, Flag())
    unreached: str = setting('error', Choice(choices=UNREACHED))
    noise: tuple[str, ...] | None = field(
        default=None, metadata={'rule': NOISE}
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, name='calibration')

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any] | None, *, seed: int = 0
    ) -> CalibrationConfig:
        """Read the config's dict.

        Args:
            config: Keys are the fields of this class; None is all defaults.
            seed: Seed if the dict has none.

        Raises:
            SettingError: If a key is unknown or a value invalid.
        """
        options = {} if config is None else config
        known = [item.name for item in fields(cls)]
        check_keys(options, known, name='calibration')
        return cls(**{'seed': seed, **options})

    def recipe(self) -> dict[str, Any]:
        """Return the settings for a quantized file: plain types, no paths."""
        recorded = {
            'num_images': self.num_images,
            'batch_size': self.batch_size,
            'seed': self.seed,
        }
        # Defaults are left out, since older files do not have these keys.
        if self.unreached != 'error':
            recorded['unreached'] = self.unreached
        if self.noise is not None:
            recorded['noise'] = list(self.noise)
        return recorded
