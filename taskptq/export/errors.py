"""What can be wrong with a file; messages go on after the file's path."""
from __future__ import annotations


class FileError(ValueError):
    """A file cannot be read; the message starts with a verb."""


class DamagedFileError(FileError):
    """The file is truncated, altered, or not as torch.save writes it."""


class NotPlainFileError(FileError):
    """The file asks for objects or calls that plain data never needs."""


def shown(name: object, *, limit: int = 80) -> str:
    """Return a name from a file for a message: quoted, on one line, short."""
    text = repr(name[: limit + 1] if isinstance(name, str | bytes) else name)
    return text if len(text) <= limit else f'{text[: limit - 3]}...'
