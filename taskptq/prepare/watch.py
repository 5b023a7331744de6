"""Count the calls of modules in a forward pass that takes no short cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from taskptq.prepare.tree import is_scripted, open_modules


@torch.no_grad()
def count_calls(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    forward: Callable[[], Any],
) -> Counter[str]:
    """Return how often each module is called in one forward pass.

    Args:
        model: The model that runs.
        modules: Name -> module; need not belong to the model.
        forward: Runs the model on a batch.
    """
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            counts[name] += 1

        return hook

    handles = [
        module.register_forward_pre_hook(counting(name))
        for name, module in modules.items()
    ]
    try:
        with no_fast_paths(model):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return counts


@contextmanager
def no_fast_paths(model: nn.Module) -> Iterator[None]:
    """Let every layer run by its own forward.

    torch's transformer layers have a fused kernel that calls none of their
    children, mmcv's ConvModule a fold on the fly.
    """
    name = 'efficient_conv_bn_eval_forward'
    folding = [
        (module, vars(module)[name])
        for _, module in open_modules(model)
        if not is_scripted(module) and vars(module).get(name) is not None
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module, _ in folding:
        setattr(module, name, None)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, value in folding:
            setattr(module, name, value)
