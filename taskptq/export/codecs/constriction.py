"""The same tables in the coder of the package ``constriction``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

from taskptq.export.codecs.histograms import Counts
from taskptq.export.codecs.rans import (
    Array,
    Model,
    fit_model,
    read_model,
    write_model,
)
from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    register_codec,
)

__all__ = ['Constriction']


@register_codec
class Constriction(Codec):
    """Compiled entropy coder: ten times faster to read, same size.

    R. Bamler, arXiv 2201.01741 (2022). One stream holds the tables' codes one
    after the other.
    """

    name = 'constriction'
    automatic = False
    package = 'constriction'

    def encode(
        self, codes: Codes, *, layout: Layout, coder: Coder
    ) -> bytes | None:
        """Fit tables and encode; None for more than 8 bits or nothing."""
        if layout.bits > 8 or not layout.num_codes:
            return None
        model = fit_model(codes, layout=layout)
        table = model.table_of_codes(layout)
        stack = _constriction().stream.stack.AnsCoder()
        for number in reversed(range(len(model.tables))):
            chosen = codes[table == number]
            if len(chosen):
                symbols = _ranks(model.tables[number])[chosen]
                stack.encode_reverse(symbols, _categorical(model, number))
        words = stack.get_compressed().astype('<u4')
        return write_model(model) + bytes(words.tobytes())

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Read the tables and decode."""
        if layout.bits > 8 or not layout.num_codes:
            raise CodecError('holds codes that are too wide, or none')
        model, body = read_model(data, layout=layout)
        words = np.frombuffer(body, '<u4').astype(np.uint32)
        stack = _constriction().stream.stack.AnsCoder(words)
        found = np.empty(layout.num_codes, dtype=np.uint8)
        ends = np.cumsum(layout.parts).tolist()
        for number in range(len(model.tables)):
            spans = [
                slice(end - count, end)
                for end, count, one in zip(
                    ends, layout.parts, model.of_part, strict=True
                )
                if one == number
            ]
            count = sum(span.stop - span.start for span in spans)
            if not count:
                continue
            symbols = stack.decode(_categorical(model, number), count)
            used = np.flatnonzero(model.tables[number]).astype(np.uint8)
            values, at = used[symbols], 0
            for span in spans:
                size = span.stop - span.start
                found[span] = values[at : at + size]
                at += size
        if not stack.is_empty():
            raise CodecError('does not end where its codes do')
        return found

    def available(self) -> bool:
        """Whether constriction is installed."""
        return importlib.util.find_spec(self.package) is not None


def _categorical(model: Model, number: int) -> Any:
    """Return the model of a table; its integers make it exact on any CPU."""
    table = model.tables[number]
    shares = table[table > 0] / float(1 << model.precision)
    if len(shares) == 1:
        # The package wants two symbols at least.
        shares = np.array([1.0 - 2.0**-23, 2.0**-23])
    return _constriction().stream.model.Categorical(
        shares, perfect=False, lazy=False
    )


def _ranks(table: Counts) -> Array:
    """Return symbol -> its position among those that occur: int32."""
    return (np.cumsum(table > 0) - 1).astype(np.int32)


def _constriction() -> Any:
    return importlib.import_module('constriction')
