"""Fold BatchNorm into the convolution or linear before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskptq.hosts.class_lookup import has_forward_of, lookup
from taskptq.hosts.registry import (
    CONV_MODULES,
    CONV_NORM_CLASSES,
    NORMS,
    dotted,
)
from taskptq.prepare.plain_weights import is_plain
from taskptq.prepare.tree import (
    is_scripted,
    open_modules,
    parameter_owners,
    parent_counts,
    replace_modules,
)

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_BATCHNORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def fuse_batchnorm(
    model: nn.Module, pairs: Iterable[tuple[str, str]] | None = None
) -> list[str]:
    """Fold BatchNorms into the layers before them, in place.

    Folded norms become nn.Identity. Eval-mode statistics are what is folded.

    Args:
        model: In eval mode; changed in place.
        pairs: Qualified names (layer, norm); None takes what the classes of
            the model guarantee, see :func:`structural_pairs`.

    Returns:
        Qualified names of the folded norms.

    Raises:
        ValueError: If a pair is not in the model or cannot be folded; the
            model is then untouched.
    """
    if pairs is None:
        pairs = [
            pair
            for pair in structural_pairs(model)
            if is_plain(model.get_submodule(pair[0]), 'weight')
        ]
    pairs = list(pairs)
    check_pairs(model, pairs)
    leave_folding_on_the_fly(model)
    identities: dict[int, nn.Module] = {}
    for layer_name, norm_name in pairs:
        norm = model.get_submodule(norm_name)
        fold(model.get_submodule(layer_name), norm)
        identities[id(norm)] = nn.Identity()
    replace_modules(model, identities)
    return [norm for _, norm in pairs]


def leave_folding_on_the_fly(model: nn.Module) -> None:
    """Switch off mmcv's own fold, which passes by the conv's forward."""
    for _, module in open_modules(model):
        if not is_scripted(module) and hasattr(
            module, 'efficient_conv_bn_eval_forward'
        ):
            setattr(module, 'efficient_conv_bn_eval_forward', None)  # noqa: B010


def folded_parameters(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return w' = w gamma / sigma and b' = (b - mu) gamma / sigma + beta.

    Args:
        layer: nn.Conv2d, nn.ConvTranspose2d or nn.Linear.
        norm: BatchNorm with running statistics over the layer's outputs.
    """
    dtype = layer.weight.dtype
    if layer.weight.is_meta:
        # Without values; arithmetic there would import torch's compiler.
        outline = torch.empty_like(norm.running_var, dtype=dtype)
        return torch.empty_like(layer.weight), outline
    # double: the quotient of two small numbers may be large
    sigma = (norm.running_var.double() + norm.eps).sqrt()
    gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight
    beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias
    factor = gamma.double() / sigma
    bias = 0.0 if layer.bias is None else layer.bias.double()
    bias = (bias - norm.running_mean.double()) * factor + beta.double()
    weight = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose2d):
        # (groups C_in) x C_out x kH x kW
        grouped = weight.unflatten(0, (layer.groups, -1))
        by_group = factor.reshape(layer.groups, 1, -1, 1, 1)
        weight = (grouped * by_group).flatten(0, 1)
    else:
        weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.to(dtype), bias.to(dtype)


@torch.no_grad()
def fold(layer: Any, norm: Any) -> None:
    """Fold one norm; the layer is changed in place.

    Args:
        layer: nn.Conv2d, nn.ConvTranspose2d or nn.Linear.
        norm: BatchNorm with running statistics over the layer's outputs.
    """
    weight, bias = folded_parameters(layer, norm)
    layer.weight.data = weight
    layer.bias = nn.Parameter(bias, requires_grad=False)


def is_norm(module: object) -> bool:
    """Whether a module computes what BatchNorm does in eval mode."""
    if not isinstance(module, nn.Module) or is_scripted(module):
        return False
    cls = type(module)
    if not (cls.forward in _BATCHNORM_FORWARDS or dotted(cls) in NORMS):
        return False
    changed = 'forward' in vars(module) or module._modules
    return not changed and getattr(module, 'running_var', None) is not None


def is_foldable(layer: object) -> bool:
    """Whether a norm can be folded into a layer: by its exact class."""
    if not isinstance(layer, LAYERS):
        return False
    implementation = lookup(layer)
    return implementation is not None and issubclass(implementation, LAYERS)


def fits(layer: Any, norm: Any) -> bool:
    """Whether a norm could be folded into a layer, by class and channels."""
    if not is_foldable(layer) or not is_norm(norm):
        return False
    return bool(output_channels(layer) == norm.num_features)


def output_channels(layer: Any) -> int:
    """Return the channels of a convolution's or linear's output."""
    return int(
        layer.out_features
        if isinstance(layer, nn.Linear)
        else layer.out_channels
    )


def check_pairs(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse pairs that cannot be folded.

    Raises:
        ValueError: Names the pair.
    """
    modules = dict(open_modules(model))
    for layer_name, norm_name in pairs:
        for name in (layer_name, norm_name):
            if name not in modules:
                raise ValueError(
                    f'{norm_name!r} is to be folded into {layer_name!r}, but '
                    f'the model has no module {name!r}'
                )
        layer, norm = modules[layer_name], modules[norm_name]
        if not fits(layer, norm) or not is_plain(layer, 'weight'):
            raise ValueError(
                f'{norm_name!r} ({type(norm).__name__}) cannot be folded '
                f'into {layer_name!r} ({type(layer).__name__}): their '
                'classes or channels do not fit'
            )


def structural_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return (layer, norm) pairs that the classes of a model guarantee.

    Neighbours in whatever runs nn.Sequential's forward, the conv and norm of
    mmcv's ConvModule in an order that has the norm second, and conv i with
    norm i of the listed ResNets. A linear is never among them, since a
    BatchNorm1d normalises another axis of a three-dimensional input.
    """
    modules = dict(open_modules(model))
    shared = _shared_layers(model)
    return [
        (layer, norm)
        for layer, norm in _named_pairs(model, _structural_children)
        if not isinstance(modules[layer], nn.Linear)
        and id(modules[norm]) not in shared
    ]


def candidate_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return pairs that may be ones: what data must confirm, each.

    Besides the structural ones these are conv i and norm i of any class,
    neighbours of any nn.Sequential, and layers with a norm registered right
    after them.
    """
    return _named_pairs(model, _likely_children)


def former_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return the pairs as they were found before schema 2: by names alone.

    Only the state of a file says which of them were folded.
    """
    return _named_pairs(model, _former_children)


def state_names(model: nn.Module, name: str) -> set[str]:
    """Return the state-dict keys of one module."""
    module = model.get_submodule(name)
    return {f'{name}.{key}' for key in module.state_dict()}


def _named_pairs(model: nn.Module, children: Any) -> list[tuple[str, str]]:
    names = {id(module): name for name, module in open_modules(model)}
    shared = _shared_layers(model)
    found: dict[tuple[str, str], None] = {}
    for _, parent in open_modules(model):
        if is_scripted(parent):
            continue
        for layer_name, norm_name in children(parent):
            layer = getattr(parent, layer_name, None)
            norm = getattr(parent, norm_name, None)
            if fits(layer, norm) and id(layer) not in shared:
                found[names[id(layer)], names[id(norm)]] = None
    return list(found)


def _structural_children(parent: nn.Module) -> list[tuple[str, str]]:
    names = list(parent._modules)
    if isinstance(parent, nn.Sequential):
        sequential = type(parent).forward is nn.Sequential.forward
        return list(pairwise(names)) if sequential else []
    if has_forward_of(parent, CONV_MODULES):
        return _conv_module_pair(parent)
    if has_forward_of(parent, CONV_NORM_CLASSES):
        return _numbered_pairs(parent)
    return []


def _former_children(parent: nn.Module) -> list[tuple[str, str]]:
    if isinstance(parent, nn.Sequential):
        return list(pairwise(parent._modules))
    if hasattr(parent, 'norm_name') and hasattr(parent, 'order'):
        return _conv_module_pair(parent)
    return _numbered_pairs(parent)


def _likely_children(parent: nn.Module) -> Iterator[tuple[str, str]]:
    yield from _structural_children(parent)
    yield from _former_children(parent)
    yield from pairwise(parent._modules)


def _conv_module_pair(parent: Any) -> list[tuple[str, str]]:
    # ConvModule registers its norm under the norm's own name.
    norm_name = getattr(parent, 'norm_name', None)
    order = getattr(parent, 'order', None)
    if not isinstance(norm_name, str) or not isinstance(order, tuple | list):
        return []
    follows = ('conv', 'norm') in pairwise(order)
    return [('conv', norm_name)] if follows else []


def _numbered_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    # _modules, as named_children() leaves out what comes a second time
    names = list(parent._modules)
    pairs = [
        (f'conv{i}', str(getattr(parent, f'norm{i}_name', f'bn{i}')))
        for i in (1, 2, 3)
    ]
    # Pre-activation blocks define the norm that comes first, first.
    return [
        (conv, norm)
        for conv, norm in pairs
        if conv in names and norm in names[names.index(conv) :]
    ]


def _shared_layers(model: nn.Module) -> set[int]:
    """Layers under several names, or whose weight others own, too.

    Their norms differ, so none of these can be folded.
    """
    shared = {key for key, count in parent_counts(model).items() if count > 1}
    for owners in parameter_owners(model).values():
        if len(owners) > 1:
            shared |= {id(module) for _, module, _ in owners}
    return shared
