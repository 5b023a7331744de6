"""Errors of unreadable files; messages continue after the file's path."""

from __future__ import annotations


class FileError(ValueError):
    """A file cannot be read; the message starts with a verb."""


class DamagedFileError(FileError):
    """The file is truncated, altered, or not as torch.save writes it."""


class NotPlainFileError(FileError):
    """The file asks for objects or calls that plain data never needs."""


class OnnxFileError(ValueError):
    """An ONNX file cannot be used; the message is one sentence."""


def shown(value: object, *, limit: int = 80) -> str:
    """Format a value from a file for a message, short and on one line.

    Args:
        value: Any value; only the type is shown unless it is a plain type.
        limit: Maximum number of characters.
    """
    if isinstance(value, str | bytes):
        text = repr(value[: limit + 1])
    elif type(value) is int and value.bit_length() > 1000:
        text = 'a huge number'
    elif value is None or isinstance(value, int | float):
        text = repr(value)
    elif type(value) in (list, tuple):
        assert isinstance(value, list | tuple)
        parts = [_shown_part(part) for part in value[:8]]
        text = f'[{", ".join(parts + ["..."] * (len(value) > 8))}]'
    else:
        text = type(value).__name__
    return text if len(text) <= limit else f'{text[: limit - 3]}...'


def _shown_part(part: object) -> str:
    """Format an item of a list, without nested lists (possibly circular)."""
    if type(part) in (list, tuple):
        return type(part).__name__
    return shown(part, limit=20)
