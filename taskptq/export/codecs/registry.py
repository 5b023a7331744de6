"""Registry of section codecs, and the choice of the smallest.

A section is a flat array of unsigned integers of one width: the codes of all
weights of 4 bits, or all float32 biases seen as 32-bit words. A codec turns
it into bytes and back. To add one:

1. Subclass ``Codec`` in a module of this folder: a ``name``, ``encode`` and
   ``decode``. ``encode`` returns None for a layout that it does not handle.
2. Decorate the class with ``@register_codec`` and import its module in
   ``codecs/__init__.py``. With ``automatic = True`` it takes part in
   ``codec='auto'``, which is only right if it needs no extra package.

A codec may nest others, as ``planes`` does: it splits its codes into streams
and passes each to ``coder.encode`` and ``coder.decode``, which choose and
record a codec for it. What ``decode`` gets comes from strangers: it raises
``CodecError`` (ValueError, IndexError and the like are turned into one) and
allocates no more than ``layout`` declares, which was checked before.

The file lists the codecs' names once; a section begins with one byte, the
position of its codec in that list.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    'CHOICES',
    'Codec',
    'CodecError',
    'Coder',
    'Codes',
    'Layout',
    'MissingCodecError',
    'chosen_codecs',
    'code_dtype',
    'codec_names',
    'register_codec',
]

Codes = npt.NDArray[Any]

# A section may hold this many times its bytes, and a little more: a larger
# claim is an attack on the reader's memory.
MAX_EXPANSION, FREE_BYTES = 1024, 4096
# Codecs in codecs: words in planes, values beside a mask.
MAX_NESTING = 4
MAX_CODECS = 255
DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


class CodecError(ValueError):
    """A section cannot be decoded; the message starts with a verb."""


class MissingCodecError(CodecError):
    """A section needs a codec that is unknown or not installed."""


class Layout(NamedTuple):
    """What the codes of a section are; known before they are decoded.

    Attributes:
        bits: Width of a code, 1 to 64.
        parts: Number of codes of each tensor, in order; statistics change
            from one to the next.
    """

    bits: int
    parts: tuple[int, ...]

    @property
    def num_codes(self) -> int:
        """Number of codes."""
        return sum(self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the decoded array."""
        return self.num_codes * code_dtype(self.bits).itemsize


class Codec:
    """A reversible code for sections.

    Attributes:
        name: Its name in files.
        automatic: Whether ``codec='auto'`` tries it.
        package: Package that it imports, '' if none.
    """

    name: ClassVar[str]
    automatic: ClassVar[bool] = True
    package: ClassVar[str] = ''

    def encode(
        self, codes: Codes, *, layout: Layout, coder: Coder
    ) -> bytes | None:
        """Return the codes as bytes; None if the layout is not for it.

        Args:
            codes: (layout.num_codes,), in the dtype of ``code_dtype``, values
                below ``2 ** layout.bits``.
            layout: Width and parts.
            coder: For nested streams.
        """
        raise NotImplementedError

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Undo :meth:`encode`, for bytes that may be damaged or crafted.

        Raises:
            CodecError: If the bytes are not those of such a section.
        """
        raise NotImplementedError

    def available(self) -> bool:
        """Whether the package that it needs is installed."""
        return True


CODECS: dict[str, Codec] = {}
_Class = TypeVar('_Class', bound=type[Codec])


def register_codec(kind: _Class) -> _Class:
    """Register a codec's class under its name.

    Raises:
        ValueError: If the name is taken.
    """
    if kind.name in CODECS:
        raise ValueError(f'there already is a codec named {kind.name!r}')
    CODECS[kind.name] = kind()
    return kind


# What ``codec=`` and ``--codec`` accept.
CHOICES = ('dense', 'auto', 'rans', 'zstd', 'constriction')


def codec_names(choice: str) -> list[str]:
    """Return the codecs that compete for a choice, ``dense`` first.

    ``auto`` needs no extra package to be read. A codec by name competes with
    dense packing only, besides those that nest others.

    Args:
        choice: One of ``CHOICES``, or a registered name.

    Raises:
        ValueError: If there is no such codec.
        MissingCodecError: If its package is not installed.
    """
    if choice == 'auto':
        found = [name for name, codec in CODECS.items() if codec.automatic]
        return list(dict.fromkeys(['dense', *found]))
    if choice not in CODECS:
        raise ValueError(
            f'codec={choice!r} is unknown: choose one of {", ".join(CHOICES)}'
        )
    _find(choice)
    if choice == 'dense':
        return ['dense']
    nesting = [
        name
        for name, codec in CODECS.items()
        if getattr(codec, 'nests', False)
    ]
    return list(dict.fromkeys(['dense', choice, *nesting]))


def _find(name: str) -> Codec:
    codec = CODECS.get(name)
    if codec is None:
        raise MissingCodecError(
            f'needs the codec {name[:40]!r}, which this version does not '
            f'have (it has {", ".join(CODECS)}): install the version that '
            'wrote it'
        )
    if not codec.available():
        raise MissingCodecError(
            f'needs the codec {name!r}: pip install {codec.package}'
        )
    return codec


class Coder:
    """Encoder and decoder of the sections of one file.

    Args:
        names: Codecs of the file, in order of their numbers.

    Raises:
        MissingCodecError: If one is unknown or its package is missing.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) > MAX_CODECS:
            raise CodecError(f'names {len(names)} codecs')
        self.names = list(names)
        self.codecs = [_find(name) for name in names]
        self._depth = 0

    def encode(self, codes: Codes, *, layout: Layout) -> bytes:
        """Return the shortest form of the codes, with its codec's number.

        Args:
            codes: (layout.num_codes,), unsigned.
            layout: Width and parts.
        """
        codes = np.ascontiguousarray(codes, dtype=code_dtype(layout.bits))
        if codes.shape != (layout.num_codes,):
            raise ValueError(
                f'codes of shape {codes.shape} do not have the '
                f'{layout.num_codes} elements of their parts'
            )
        best: bytes | None = None
        for number, codec in enumerate(self.codecs):
            found = codec.encode(codes, layout=layout, coder=self)
            if found is None or not _fits(found, layout):
                continue
            if best is None or 1 + len(found) < len(best):
                best = bytes([number]) + found
        if best is None:
            raise ValueError(
                f'none of the codecs {self.names} takes codes of '
                f'{layout.bits} bits: add dense'
            )
        return best

    def decode(self, data: bytes, *, layout: Layout) -> Codes:
        """Undo :meth:`encode`.

        Args:
            data: A section, from a file that is not trusted.
            layout: Width and parts, as the file declares them.

        Raises:
            CodecError: If it declares more than it can hold, or is damaged.
        """
        if not data or data[0] >= len(self.codecs):
            raise CodecError('is empty, or has a codec that the file lacks')
        if not _fits(data, layout):
            raise CodecError(
                f'declares {layout.num_bytes:,} bytes but has {len(data):,}; '
                f'no section shrinks to 1/{MAX_EXPANSION:,}'
            )
        if self._depth >= MAX_NESTING:
            raise CodecError('nests codecs too deeply')
        codec = self.codecs[data[0]]
        self._depth += 1
        try:
            codes = codec.decode(data[1:], layout=layout, coder=self)
            _check_codes(codes, layout)
        except CodecError:
            raise
        except DECODE_ERRORS as error:
            raise CodecError(f'is not a section of {codec.name}') from error
        finally:
            self._depth -= 1
        return codes

    def codec_of(self, data: bytes) -> str:
        """Return the name of the codec of an encoded section."""
        return self.names[data[0]]


def chosen_codecs(choice: str) -> Coder:
    """Return the coder that writes files with a choice of ``CHOICES``.

    Raises:
        ValueError: See :func:`codec_names`.
    """
    return Coder(codec_names(choice))


def code_dtype(bits: int) -> np.dtype[Any]:
    """Return the narrowest unsigned type, little endian, for a width."""
    for width in (8, 16, 32, 64):
        if bits <= width:
            return np.dtype(f'<u{width // 8}')
    raise ValueError(f'codes of {bits} bits are wider than 64')


def _fits(data: bytes, layout: Layout) -> bool:
    return layout.num_bytes <= FREE_BYTES + MAX_EXPANSION * len(data)


def _check_codes(codes: Codes, layout: Layout) -> None:
    if codes.shape != (layout.num_codes,) or (
        codes.dtype != code_dtype(layout.bits)
    ):
        raise CodecError('holds another number of codes than it declares')
    if layout.num_codes and int(codes.max()) >> layout.bits:
        raise CodecError(f'holds codes of more than {layout.bits} bits')
