"""Optional packages of this layer."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ['MissingNoisePackageError', 'optional_package']

# Import name -> distribution.
DISTRIBUTIONS = {
    'av': 'av',
    'imagecorruptions': 'imagecorruptions-imaug',
    'simplejpeg': 'simplejpeg',
}


class MissingNoisePackageError(RuntimeError):
    """A package that a noise needs is not installed."""


def optional_package(name: str, *, noise: str) -> Any:
    """Import an optional package.

    Args:
        name: Import name.
        noise: Name of the noise that needs it, for the message.

    Raises:
        MissingNoisePackageError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != name:
            raise
        raise MissingNoisePackageError(
            f'{noise} needs {name}: pip install {DISTRIBUTIONS[name]}, or '
            "taskptq's extra [robustness]"
        ) from error
