"""Verify the structure, digest and numbers of payloads, once for each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from taskptq.export.container import expanded
from taskptq.export.numbers import number_faults
from taskptq.export.schema import (
    QuantizedCheckpointError,
    compute_digest,
    described,
    tensors,
)
from taskptq.export.validate import check_structure

MAX_NAMED = 3

# Name, object id, version counter, address and shape of a tensor.
_Mark = tuple[str, int, int, int, tuple[int, ...]]


class VerifiedPayload(dict[str, Any]):
    """A payload that passed :func:`verify`, and its state at that time.

    Readers can use it as a plain dict. Verifying it again is cheap unless
    it was changed in between.
    """

    _seal: tuple[Any, ...] | None = None


def verify(payload: Mapping[str, Any]) -> VerifiedPayload:
    """Check that a payload is complete, unchanged, and plausible.

    Args:
        payload: From :func:`taskptq.export.load`, ``pack_model`` or any
            other reader; schema 1 or 2, or in the form that files have.

    Returns:
        The payload, marked so that its digest is computed only once.

    Raises:
        QuantizedCheckpointError: If it isn't ours, has an unknown schema,
            violates its schema, doesn't match its digest, or holds numbers
            that no quantized model has.
    """
    if isinstance(payload, VerifiedPayload) and payload._seal is not None:
        seal = _seal_of(payload)
        if seal is not None and seal == payload._seal:
            return payload
    try:
        payload = expanded(payload)
        check_structure(payload)
        if compute_digest(payload) != payload['digest']:
            raise QuantizedCheckpointError(
                'the digest of the quantized checkpoint does not match its '
                'contents: it was changed after it was written; quantize '
                'again or fetch the file again'
            )
        _check_numbers(payload)
    except (MemoryError, RecursionError) as error:
        raise QuantizedCheckpointError(
            'the quantized checkpoint is too large or too deeply nested to '
            'be checked: quantize again'
        ) from error
    verified = VerifiedPayload(payload)
    verified._seal = _seal_of(verified)
    return verified


def check(payload: Mapping[str, Any]) -> None:
    """Check a payload before it is written, apart from its digest.

    Raises:
        QuantizedCheckpointError: As :func:`verify`.
    """
    check_structure(payload)
    _check_numbers(payload)


def _check_numbers(payload: Mapping[str, Any]) -> None:
    faults = list(islice(number_faults(payload), MAX_NAMED))
    if faults:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint has impossible numbers: '
            f'{"; ".join(faults)}; quantize again'
        )


def _seal_of(payload: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return marks of a payload's state, without reading tensor bytes."""
    try:
        check_structure(payload)
        marks = [_mark(name, tensor) for name, tensor in tensors(payload)]
        return repr(described(payload)), payload['digest'], marks
    except (QuantizedCheckpointError, RuntimeError):
        return None  # changed, or tensors without a version counter


def _mark(name: str, tensor: Tensor) -> _Mark:
    return (
        name,
        id(tensor),
        tensor._version,
        tensor.data_ptr(),
        tuple(tensor.shape),
    )
