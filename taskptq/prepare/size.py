"""Settings of ``qconfig.size``: how large the quantized file may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from taskptq.core.settings import (
    Choice,
    Number,
    Table,
    Whole,
    check_fields,
    check_keys,
    refuse,
    setting,
)

# As taskptq.export.codecs.CHOICES, which is a layer above.
CODECS = ('dense', 'auto', 'rans', 'zstd', 'constriction')
FLOAT_BYTES = 4
NAME = 'qconfig.size'


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """How large the quantized file may be.

    Each weight gets one step, by what its errors cost at the outputs, so
    that the entropy-coded file has this size; ``num_bits`` of weights only
    bounds their codes.

    Args:
        ratio: How many times smaller than 4 bytes for each parameter and
            buffer of the float model; None with ``max_bytes``.
        max_bytes: Largest size of the file in bytes; None with ``ratio``.
        codec: How the file is coded, as ``taskptq compress --codec``.
        num_images: Calibration images for the costs of errors.

    Raises:
        SettingError: If a value is invalid.
    """

    ratio: float | None = setting(
        None, Number(low=1, high=1000, optional=True)
    )
    max_bytes: int | None = setting(
        None, Whole(low=1, high=1 << 40, optional=True)
    )
    codec: str = setting('auto', Choice(choices=CODECS))
    num_images: int = setting(16, Whole(low=1, high=1_000_000))

    def __post_init__(self) -> None:
        check_fields(self, name=NAME)
        if (self.ratio is None) == (self.max_bytes is None):
            raise refuse(
                f'{NAME}.ratio',
                self.ratio,
                'give either a ratio such as 10 or max_bytes, not both',
            )

    def limit(self, num_values: int) -> int:
        """Return the largest size of the file in bytes.

        Args:
            num_values: Parameters and buffers of the float model.
        """
        if self.max_bytes is not None:
            return self.max_bytes
        assert self.ratio is not None
        return int(FLOAT_BYTES * num_values / self.ratio)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> SizeConfig:
        """Read the plain form.

        Raises:
            SettingError: If a key is unknown or a value is invalid.
        """
        check_keys(config, [known.name for known in fields(cls)], name=NAME)
        return cls(**config)


def read_size(config: Any) -> SizeConfig | None:
    """Read ``qconfig.size``; None stays None.

    Raises:
        SettingError: If it is neither a dict nor None, or a key is invalid.
    """
    settings = Table(optional=True).read(config, name=NAME)
    return None if settings is None else SizeConfig.from_dict(settings)


def plain_size(config: SizeConfig | None) -> dict[str, Any]:
    """Return the entry of a plain qconfig; none without a size."""
    return {} if config is None else {'size': asdict(config)}
