"""Where the bytes of a quantized file are, and what its codes must take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskptq.export.codecs import Coder, Layout
from taskptq.export.codecs.dense import dense_size
from taskptq.export.codecs.histograms import entropy_bits, histograms
from taskptq.export.codecs.registry import Codes
from taskptq.export.container import is_container, to_file, to_payload
from taskptq.export.container_index import Section, open_index
from taskptq.export.errors import FileError
from taskptq.export.reader import read_file
from taskptq.export.schema import QuantizedCheckpointError, is_quantized

__all__ = ['SectionSize', 'SizeReport', 'section_sizes', 'size_report']

FLOAT_BYTES = 4
# Of wider codes, each byte is a stream by itself.
BYTE = 8


class SectionSize(NamedTuple):
    """Size of a section.

    Attributes:
        kind: ``weights``, ``quantizers`` or ``float``.
        codec: Its codec; of nested ones the outer.
        bits: Width of a code.
        codes: Number of codes.
        dense_bytes: What they take without coding.
        entropy_bytes: Shannon's bound for static statistics of each tensor
            (of each of its bytes, beyond 8 bits).
        bytes: What they take in the file, with the coder's tables.
    """

    kind: str
    codec: str
    bits: int
    codes: int
    dense_bytes: int
    entropy_bytes: float
    bytes: int


class SizeReport(NamedTuple):
    """Size of a file.

    Attributes:
        file_bytes: All of it.
        float_bytes: 4 bytes for each parameter and buffer in it.
        index_bytes: Compressed names, shapes, recipe and meta.
        sections: Coded sections.
    """

    file_bytes: int
    float_bytes: int
    index_bytes: int
    sections: list[SectionSize]

    @property
    def ratio(self) -> float:
        """How many times smaller than in float32."""
        return self.float_bytes / self.file_bytes

    def of_kind(self, kind: str) -> SectionSize:
        """Return the sum of the sections of a kind."""
        rows = [row for row in self.sections if row.kind == kind]
        names = Counter(row.codec for row in rows)
        return SectionSize(
            kind=kind,
            codec='+'.join(names),
            bits=max((row.bits for row in rows), default=0),
            codes=sum(row.codes for row in rows),
            dense_bytes=sum(row.dense_bytes for row in rows),
            entropy_bytes=sum(row.entropy_bytes for row in rows),
            bytes=sum(row.bytes for row in rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            **self._asdict(),
            'ratio': self.ratio,
            'sections': [row._asdict() for row in self.sections],
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield (
            f'{self.file_bytes:,} bytes, 1/{self.ratio:.2f} of '
            f'{self.float_bytes:,} bytes in float32'
        )
        yield (
            f'{"section":11}{"codec":14}{"bits":>5}{"codes":>12}'
            f'{"dense":>12}{"entropy":>12}{"bytes":>12}'
        )
        for row in self.sections:
            yield (
                f'{row.kind:11}{row.codec:14}{row.bits:5}{row.codes:12,}'
                f'{row.dense_bytes:12,}{row.entropy_bytes:12,.0f}'
                f'{row.bytes:12,}'
            )
        rest = self.file_bytes - self.index_bytes
        rest -= sum(row.bytes for row in self.sections)
        yield (
            f'names, shapes, recipe and meta {self.index_bytes:,} bytes, '
            f'container {rest:,}'
        )


def section_sizes(
    sections: list[Section], *, coder: Coder
) -> list[SectionSize]:
    """Measure coded sections.

    Args:
        sections: Of a checked file.
        coder: Reads them.
    """
    return [
        SectionSize(
            kind=section.kind,
            codec=coder.codec_of(section.data),
            bits=section.layout.bits,
            codes=section.layout.num_codes,
            dense_bytes=dense_size(
                section.layout.num_codes, bits=section.layout.bits
            ),
            entropy_bytes=_entropy_bytes(
                coder.decode(section.data, layout=section.layout),
                layout=section.layout,
            ),
            bytes=len(section.data),
        )
        for section in sections
    ]


def _entropy_bytes(codes: Codes, *, layout: Layout) -> float:
    if layout.bits > BYTE:
        width = codes.dtype.itemsize
        columns = codes.view(np.uint8).reshape(-1, width).T
        parts = Layout(BYTE, layout.parts)
        return sum(_entropy_bytes(row, layout=parts) for row in columns)
    counts = histograms(
        codes, parts=layout.parts, num_symbols=1 << layout.bits
    )
    return float(entropy_bits(counts).sum()) / 8


def size_report(path: str | Path) -> SizeReport:
    """Measure a quantized file; one of an older form as if written now.

    Args:
        path: The file.

    Raises:
        QuantizedCheckpointError: If it is not one, or damaged.
    """
    path = Path(path)
    try:
        content = read_file(path)
    except FileError as error:
        raise QuantizedCheckpointError(f'{path} {error}') from error
    if not is_quantized(content):
        raise QuantizedCheckpointError(
            f'{path} is not a quantized file of taskptq'
        )
    stored = content if is_container(content) else to_file(content)
    index = open_index(stored)
    return SizeReport(
        file_bytes=path.stat().st_size,
        float_bytes=float_bytes(to_payload(stored)),
        index_bytes=stored['index'].numel(),
        sections=section_sizes(index.sections, coder=index.coder),
    )


def float_bytes(payload: Mapping[str, Any]) -> int:
    """Return 4 bytes for each parameter and buffer of a payload."""
    packed = sum(
        int(np.prod(entry['shape'], dtype=np.int64))
        for entry in payload['weights'].values()
    )
    rest = sum(int(tensor.numel()) for tensor in payload['float'].values())
    return FLOAT_BYTES * int(packed + rest)
