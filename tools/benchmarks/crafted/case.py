"""One crafted file: what it is, how it is made, who gets it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    'MODULE',
    'Case',
    'Good',
    'edited',
    'edited_float',
    'edited_training',
    'redigest',
]

# An importable module whose import leaves the marker.
MODULE = 'crafted_marker'
QAT_KEY = 'taskptq_qat'
# What a digest ends in where a file is too odd to have one.
NO_DIGEST = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Good:
    """The files that crafted ones are made from, of one host's model.

    Args:
        folder: Holds ``float.pth``, ``quantized.pth``, ``training.pth``
            (of QATHook), ``epoch.pth`` (of a plain training), ``state/``.
        marker: File that appears if a crafted file ran code.
    """

    folder: Path
    marker: Path

    @property
    def command(self) -> str:
        """Shell command that leaves the marker."""
        return f'echo ran > {self.marker}'

    @property
    def code(self) -> str:
        """Python expression that leaves the marker."""
        return f"__import__('os').system({self.command!r})"

    def path(self, source: str) -> Path:
        """Return a good file, e.g. that of ``'quantized'``."""
        return self.folder / (
            'state' if source == 'state' else f'{source}.pth'
        )

    def read(self, source: str) -> dict[str, Any]:
        """Read a good file's content."""
        return torch.load(
            self.path(source), map_location='cpu', weights_only=False
        )


Write = Callable[[Good, Path], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A crafted file.

    Args:
        name: Unique, also the file's stem.
        kind: Which module makes it, for the totals.
        effect: What it would do to a trusting reader.
        write: Makes the file from the good ones.
        source: The good file that it is compared with: ``float``,
            ``quantized``, ``training``, ``epoch``, ``state``.
        expect: ``refused``, ``accepted`` (harmless) or ``either``.
        tools: Who gets it; None gives it to all who read its source.
    """

    name: str
    kind: str
    effect: str
    write: Write
    source: str = 'quantized'
    expect: str = 'refused'
    tools: tuple[str, ...] | None = None


def redigest(payload: dict[str, Any]) -> None:
    """Give a changed payload its right digest, as anyone can.

    Args:
        payload: Content of a quantized file; keeps its old digest where the
            version under test cannot compute one.
    """
    from taskptq.export.schema import compute_digest

    try:
        payload['digest'] = compute_digest(payload)
    except NO_DIGEST:
        return


def edited(
    change: Callable[[dict[str, Any]], Any], *, digest: bool = True
) -> Write:
    """Return how to write a changed quantized file.

    Args:
        change: Gets the payload and changes it in place.
        digest: Compute the digest anew; not where that would take for ever.
    """

    def write(good: Good, path: Path) -> None:
        payload = good.read('quantized')
        change(payload)
        if digest:
            redigest(payload)
        torch.save(payload, path)

    return write


def edited_float(
    change: Callable[[dict[str, Any]], Any], *, source: str = 'float'
) -> Write:
    """Return how to write a changed float checkpoint; see :func:`edited`."""

    def write(good: Good, path: Path) -> None:
        payload = good.read(source)
        result = change(payload)
        torch.save(payload if result is None else result, path)

    return write


def edited_training(change: Callable[[dict[str, Any]], Any]) -> Write:
    """Return how to write a changed checkpoint of QATHook.

    Args:
        change: Gets the entry with recipe and weights.
    """

    def write(good: Good, path: Path) -> None:
        payload = good.read('training')
        # A config in meta is not what these files are about.
        payload['meta'] = {**payload.get('meta', {}), 'cfg': ''}
        change(payload[QAT_KEY])
        torch.save(payload, path)

    return write


def first(entries: Mapping[str, Any], *, ending: str = '') -> str:
    """Return the first name with an ending and a value that is not empty."""
    for name, value in entries.items():
        filled = not hasattr(value, 'numel') or value.numel() > 0
        if name.endswith(ending) and filled:
            return name
    raise ValueError(f'no entry ends in {ending!r}')


def replaced(tree: Mapping[str, Any], keys: str, value: Any) -> Any:
    """Return a deep copy of plain data with one dotted entry replaced."""
    result = copy.deepcopy(dict(tree))
    *parents, last = keys.split('.')
    node: Any = result
    for key in parents:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    node[last] = value
    return result
