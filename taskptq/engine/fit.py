"""Check whether a file's weights belong to a model."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

__all__ = ['refuse_misfit']

# Runner.load_checkpoint renames the weights of every file like this.
WRAPPER_PREFIX = re.compile('^module.')
# With more weights left over, the model is only a part of the one that the
# file was written for, or another one whose layers fit by chance. Heads of a
# second task and counters stay far below this share.
MAX_UNEXPECTED = 0.5
MAX_NAMED = 3


def refuse_misfit(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    path: str | Path | None,
    logger: Any,
) -> None:
    """Refuse misfitting weights that mmengine would load with a warning.

    The weights are loaded into the model as mmengine will do again, because
    hosts update names of older versions while they load.

    Args:
        model: Unwrapped float model.
        checkpoint: Contents of the file: a state dict, or one under
            ``state_dict``.
        path: The file, for messages.
        logger: Logger for unused weights.

    Raises:
        ValueError: If weights are missing or have other shapes, or the model
            does not use most of the file's weights.
    """
    name = 'the checkpoint' if path is None else str(path)
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) for key in state
    ):
        raise ValueError(f'{name} has no state_dict with weights')
    weights = OrderedDict(
        (WRAPPER_PREFIX.sub('', key), value) for key, value in state.items()
    )
    if not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f'{name} holds no weights where mmengine looks for '
            'them: they belong under the key state_dict'
        )
    metadata = getattr(state, '_metadata', None)
    missing, unexpected, errors = load_weights(
        model, weights, metadata=metadata
    )
    lacking = [
        f'{key} is missing'
        for key in missing
        if 'num_batches_tracked' not in key
    ]
    lacking += [*errors, *complex_weights(model, weights)]
    if lacking:
        raise ValueError(
            f'{name} does not fit {type(model).__name__}: '
            f'{"; ".join(lacking[:MAX_NAMED])} ({len(lacking)} in all); check '
            'that config and checkpoint belong together'
        )
    refuse_leftovers(
        weights, unexpected, name=name, model=model, logger=logger
    )


def complex_weights(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """List complex weights of real parameters, which torch would truncate."""
    own = model.state_dict()
    return [
        f'{key} holds complex numbers'
        for key, value in weights.items()
        if isinstance(value, Tensor)
        and value.is_complex()
        and isinstance(own.get(key), Tensor)
        and not own[key].is_complex()
    ]


def refuse_leftovers(
    weights: Mapping[str, Any],
    unexpected: list[str],
    *,
    name: str,
    model: nn.Module,
    logger: Any,
) -> None:
    """Warn about weights that the model does not use; refuse too many.

    Raises:
        ValueError: If they are more than half of the file's weights.
    """
    sizes = {
        key: value.numel()
        for key, value in weights.items()
        if isinstance(value, Tensor)
    }
    unexpected = [key for key in unexpected if key in sizes]
    if not unexpected:
        return
    share = sum(sizes[key] for key in unexpected) / max(sum(sizes.values()), 1)
    left = (
        f'{type(model).__name__} does not use {len(unexpected)} of the '
        f'{len(sizes)} tensors in {name}, {share:.0%} of its weights: '
        f'{", ".join(unexpected[:MAX_NAMED])}'
    )
    if share > MAX_UNEXPECTED:
        raise ValueError(
            f'{left}; check that config and checkpoint belong together'
        )
    logger.warning(left)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[list[str], list[str], list[str]]:
    """Load a state dict as mmengine does, but return the problems.

    Args:
        model: Model without wrappers.
        weights: Name -> tensor.
        metadata: Versions of the modules that wrote them.

    Returns:
        Missing names, unexpected names, and other problems.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    found = mmengine_checkpoint._IncompatibleKeys(missing, unexpected)
    _load_below(
        model,
        dict(weights),
        prefix='',
        metadata=metadata or {},
        found=found,
        errors=errors,
    )
    return missing, unexpected, [' '.join(text.split()) for text in errors]


def _load_below(
    module: nn.Module,
    state: dict[str, Any],
    *,
    prefix: str,
    metadata: Mapping[str, Any],
    found: Any,
    errors: list[str],
) -> None:
    """Load one module and its children; add to ``found`` and ``errors``."""
    module._load_from_state_dict(
        state, prefix, metadata.get(prefix[:-1], {}), True, *found, errors
    )
    for name, child in module._modules.items():
        if child is not None:
            inner = f'{prefix}{name}.'
            below = {
                key: value
                for key, value in state.items()
                if key.startswith(inner)
            }
            _load_below(
                child,
                below,
                prefix=inner,
                metadata=metadata,
                found=found,
                errors=errors,
            )
    for hook in module._load_state_dict_post_hooks.values():
        hook(module, found)
