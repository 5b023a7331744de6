"""Weights from files of other projects: official SAM, mmdet detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskptq.engine.checkpoint_file import local_file, read_checkpoint
from taskptq.export.schema import is_quantized

__all__ = ['add_sam_prefix', 'detector_weights', 'load_exactly']

# Names of SAM's parts, first in every key of an official file.
SAM_PARTS = ('image_encoder.', 'prompt_encoder.', 'mask_decoder.')
MAX_NAMED = 5


def add_sam_prefix(state: MutableMapping[str, Any], *, prefix: str) -> None:
    """Rename the keys of an official SAM file, in place.

    Args:
        state: State dict that is being loaded.
        prefix: Prefix of the SAM detector's own keys in it.
    """
    parts = tuple(prefix + part for part in SAM_PARTS)
    for key in [key for key in state if key.startswith(parts)]:
        name = key.removeprefix(prefix)
        state[f'{prefix}sam.{name}'] = state.pop(key)


def detector_weights(
    path: str | Path, *, trust_checkpoint: bool = False
) -> dict[str, Tensor]:
    """Read a detector's weights.

    Args:
        path: Checkpoint of mmdet, path or URL, or of a SAMDetector (keys
            below ``detector.``).
        trust_checkpoint: Unpickle files that hold more than plain data,
            which can run code from them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read, is quantized, or has no weights.
    """
    content = read_checkpoint(
        local_file(path), trust_checkpoint=trust_checkpoint
    )
    if is_quantized(content):
        raise ValueError(
            f'{path} is quantized already: give the float '
            'checkpoint of the detector'
        )
    state = content.get('state_dict', content)
    weights = (
        {}
        if not isinstance(state, Mapping)
        else {
            key.removeprefix('module.'): value
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    )
    inner = {
        key.removeprefix('detector.'): value
        for key, value in weights.items()
        if key.startswith('detector.')
    }
    weights = inner or weights
    if not weights or any(key.startswith(SAM_PARTS) for key in weights):
        raise ValueError(
            f'{path} holds no detector (its keys are '
            f'{name_some(weights) or "none"}): give a checkpoint of mmdet'
        )
    return weights


def load_exactly(
    module: nn.Module, weights: Mapping[str, Tensor], *, path: str | Path
) -> None:
    """Load weights, none of which may be missing, misfit or unused.

    Args:
        module: Module to load into.
        weights: State dict.
        path: Their file, for the message.

    Raises:
        ValueError: If weights are missing, unexpected or of another shape;
            names the first few.
    """
    own = module.state_dict()
    # num_batches_tracked is unused in eval mode.
    missing = [
        key
        for key in own
        if key not in weights and not key.endswith('num_batches_tracked')
    ]
    unexpected = [key for key in weights if key not in own]
    other = [
        key
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    problems = [
        f'{len(keys)} {what} ({name_some(keys)})'
        for what, keys in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', other),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f'{path} does not fit {type(module).__name__}: weights are '
            f'{", ".join(problems)}; check that config and checkpoint belong '
            'together'
        )
    module.load_state_dict(dict(weights), strict=False)


def name_some(keys: Iterable[str]) -> str:
    """Return the first few names."""
    keys = list(keys)
    more = ', ...' if len(keys) > MAX_NAMED else ''
    return ', '.join(keys[:MAX_NAMED]) + more
