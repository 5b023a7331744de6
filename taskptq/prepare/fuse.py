"""Fold BatchNorm into the convolution or linear before it."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

_CONVS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def fuse_batchnorm(model: nn.Module) -> list[str]:
    """Fold every BatchNorm that directly follows a conv or linear, in place.

    Direct followers are the pairs that the hosts use: (conv, bn) inside an
    mmcv ConvModule (unless the norm comes first), (convN, bnN) of the ResNet
    blocks and their stem, and neighbours in an nn.Sequential. Folded norms
    become nn.Identity. Eval-mode statistics are what is folded.

    Args:
        model: In eval mode; changed in place.

    Returns:
        Qualified names of the folded norms.
    """
    folded: list[str] = []
    shared = _shared_convs(model)
    for name, parent in model.named_modules():
        if hasattr(parent, 'efficient_conv_bn_eval_forward'):
            # mmcv's fold on the fly, which passes by the conv's forward.
            parent.efficient_conv_bn_eval_forward = None
        for conv_name, norm_name in _pairs(parent):
            conv: Any = getattr(parent, conv_name, None)
            norm: Any = getattr(parent, norm_name, None)
            if not _fits(conv, norm) or id(conv) in shared:
                continue
            fold(conv, norm)
            setattr(parent, norm_name, nn.Identity())
            folded.append(f'{name}.{norm_name}' if name else norm_name)
    return folded


@torch.no_grad()
def fold(conv: Any, norm: Any) -> None:
    """Fold one norm: w' = w gamma / sigma, b' = (b - mu) gamma / sigma + beta.

    Args:
        conv: nn.Conv2d, nn.ConvTranspose2d or nn.Linear; changed in place.
        norm: BatchNorm with running statistics over the conv's outputs.
    """
    dtype = conv.weight.dtype
    # double: the quotient of two small numbers may be large
    sigma = (norm.running_var.double() + norm.eps).sqrt()
    gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight
    beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias
    factor = gamma.double() / sigma
    shape = [1] * conv.weight.dim()
    shape[1 if isinstance(conv, nn.ConvTranspose2d) else 0] = -1
    bias = 0.0 if conv.bias is None else conv.bias.double()
    bias = (bias - norm.running_mean.double()) * factor + beta.double()
    conv.weight.data = (conv.weight.double() * factor.reshape(shape)).to(dtype)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    # _modules, as named_children() leaves out what comes a second time
    names = list(parent._modules)
    if isinstance(parent, nn.Sequential):
        return list(pairwise(names))
    order = getattr(parent, 'order', None)
    if hasattr(parent, 'norm_name') and order is not None:
        # ConvModule registers its norm under the norm's own name.
        norm_name: object = parent.norm_name
        if ('conv', 'norm') in pairwise(order) and isinstance(norm_name, str):
            return [('conv', norm_name)]
        return []
    pairs = [(f'conv{i}', _norm_name(parent, i)) for i in (1, 2, 3)]
    # Pre-activation blocks define the norm that comes first, first.
    return [
        (conv, norm)
        for conv, norm in pairs
        if conv in names and norm in names[names.index(conv):]
    ]


def _norm_name(parent: nn.Module, index: int) -> str:
    """Name of the norm after conv``index`` in a ResNet-like class."""
    return str(getattr(parent, f'norm{index}_name', f'bn{index}'))


def _fits(conv: object, norm: object) -> bool:
    if not isinstance(conv, _CONVS) or not isinstance(norm, _NORMS):
        return False
    if norm.running_var is None:
        return False
    if isinstance(conv, nn.ConvTranspose2d) and conv.groups > 1:
        return False
    channels = (
        conv.out_features
        if isinstance(conv, nn.Linear)
        else conv.out_channels
    )
    return bool(channels == norm.num_features)


def _shared_convs(model: nn.Module) -> set[int]:
    """Convs under several names: their norms differ, so none can fold."""
    seen: dict[int, int] = {}
    for module in model.modules():
        for child in module.children():
            if isinstance(child, _CONVS):
                seen[id(child)] = seen.get(id(child), 0) + 1
    tied: dict[int, list[int]] = {}
    for module in model.modules():
        if isinstance(module, _CONVS):
            tied.setdefault(id(module.weight), []).append(id(module))
    several = {i for group in tied.values() if len(group) > 1 for i in group}
    return {i for i, count in seen.items() if count > 1} | several
