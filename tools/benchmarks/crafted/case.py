"""One crafted file: its effect, how to write it, which tools get it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskptq.export.container import expanded

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
# Errors of computing a digest over odd contents.
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
    """The valid files of one host's model, which crafted ones are made from.

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
        """Read a good file's contents."""
        content = torch.load(
            self.path(source), map_location='cpu', weights_only=False
        )
        return dict(expanded(content))


Write = Callable[[Good, Path], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A crafted file.

    Args:
        name: Unique name, also the file's stem.
        kind: Module that makes it, for the totals.
        effect: Effect on a reader that trusts it.
        write: Makes the file from the good ones.
        source: Good file to compare it with: ``float``, ``quantized``,
            ``training``, ``epoch``, ``state``.
        expect: ``refused``, ``accepted`` (harmless) or ``either``.
        tools: Tools that get it; None for all that read its source.
    """

    name: str
    kind: str
    effect: str
    write: Write
    source: str = 'quantized'
    expect: str = 'refused'
    tools: tuple[str, ...] | None = None


def redigest(payload: dict[str, Any]) -> None:
    """Give a changed payload a valid digest, which anyone can compute.

    Args:
        payload: Contents of a quantized file; keeps its old digest if the
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
    """Return a function that writes a changed quantized file.

    Args:
        change: Changes the payload in place.
        digest: Recompute the digest; False if that would take forever.
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
    """Do the same as :func:`edited` for a float checkpoint."""

    def write(good: Good, path: Path) -> None:
        payload = good.read(source)
        result = change(payload)
        torch.save(payload if result is None else result, path)

    return write


def edited_training(change: Callable[[dict[str, Any]], Any]) -> Write:
    """Return a function that writes a changed checkpoint of QATHook.

    Args:
        change: Changes the entry with recipe and weights in place.
    """

    def write(good: Good, path: Path) -> None:
        payload = good.read('training')
        # A config in meta would be a second reason for refusal.
        payload['meta'] = {**payload.get('meta', {}), 'cfg': ''}
        change(payload[QAT_KEY])
        torch.save(payload, path)

    return write


def first(entries: Mapping[str, Any], *, ending: str = '') -> str:
    """Return the first name with an ending and a non-empty value."""
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
