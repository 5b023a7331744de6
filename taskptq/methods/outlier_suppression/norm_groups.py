"""Find the layers that read a LayerNorm through nothing but layouts.

Windows, rolls, flattened maps and heads only move a token's values around, so
a constant per channel reaches the layers behind them unchanged. Zero padding
does not: the zeros join after the constant was subtracted. Around maps with
channels last, the module that pads can be told to pad another value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taskptq.methods.equalization.scale_groups import (
    HOMOGENEOUS,
    READERS,
    Key,
    Recorder,
    TrackedTensor,
    shared_layers,
    tensor_key,
)
from taskptq.methods.rewriting.readers import SLOTS, Reader
from taskptq.modules.channel_padding import zero_padding

__all__ = ['NormGroup', 'find_norm_groups']

ATTENTION = 'multi_head_attention_forward'
# They move values, or repeat them.
LAYOUTS = {
    '__getitem__',
    'chunk',
    'clone',
    'contiguous',
    'expand',
    'flatten',
    'movedim',
    'narrow',
    'permute',
    'reshape',
    'roll',
    'select',
    'split',
    'squeeze',
    'swapaxes',
    'transpose',
    'unbind',
    'unflatten',
    'unsqueeze',
    'view',
}
# They add zeros. Whether they do may depend on the size of an image, so that
# a call that adds none counts as well.
PADS = {'pad', 'constant_pad_nd'}


@dataclass(frozen=True, kw_only=True)
class _Padding:
    """One call that pads.

    Args:
        running: Names of the modules that were running, the innermost last.
        giver: Norm whose output it pads; None if it is another tensor.
        channels: Length of the last dimension, which is not padded; 0 if it
            is, or if the padding is not with zeros.
    """

    running: tuple[str, ...]
    giver: str | None
    channels: int


@dataclass(frozen=True, kw_only=True)
class NormGroup:
    """A LayerNorm, and all layers that read its output.

    Args:
        name: Qualified name of the norm.
        norm: The norm; its weight can take a scale per channel.
        readers: All that read it.
        between: What else acts on the way to them, and treats zero in a
            special way: paddings and ReLUs; empty if nothing does.
        padders: Names of modules that pad it on the way, and can be told to
            pad another value than 0.
    """

    name: str
    norm: nn.LayerNorm
    readers: tuple[Reader, ...]
    between: str = ''
    padders: tuple[str, ...] = ()

    @property
    def obstacle(self) -> str:
        """Return why no constant can be subtracted; empty if it can."""
        if self.between:
            return self.between
        if self.norm._parameters['bias'] is None:
            return f'{self.name} has no bias to fold a shift into'
        for reader in self.readers:
            if reader.bias is None:
                return f'{reader.label} has no bias to bring the shift back'
        return ''


class _LayoutRecorder(Recorder):
    """Follow outputs of norms through layouts, into layers and attentions."""

    def __init__(
        self, owners: Mapping[int, str], *, attentions: set[str]
    ) -> None:
        super().__init__(owners)
        self.attentions = attentions
        self.special: dict[int, str] = {}  # id of a record -> what acts
        self.running: list[str] = []
        self.paddings: list[_Padding] = []
        self._channels = 0  # that the padding under way spares

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, '__name__', '') in PADS:
            found = zero_padding(args, kwargs or {})
            self._channels = 0 if found is None else found[0].shape[-1]
        return super().__torch_function__(func, types, args, kwargs)

    def _note(
        self,
        name: str,
        tensors: list[Tensor],
        keys: list[Key],
        outputs: list[Tensor],
    ) -> None:
        if name == ATTENTION:
            self._note_attention(tensors, keys)
            return
        first = self._known.get(keys[0])
        moved = name in LAYOUTS or name in PADS
        if name in PADS:
            self.paddings.append(
                _Padding(
                    running=tuple(self.running),
                    giver=None if first is None else first.giver,
                    channels=self._channels,
                )
            )
        if first is not None and moved and len(tensors) == 1:
            for output in outputs:
                self._known[tensor_key(output)] = first
            return
        if first is not None and name in HOMOGENEOUS:
            self.special[id(first)] = f'{name} on the way'
        super()._note(name, tensors, keys, outputs)

    def _note_attention(self, tensors: list[Tensor], keys: list[Key]) -> None:
        """Note the three inputs of nn.MultiheadAttention's function."""
        owners = [self._owners.get(id(x)) for x in tensors]
        inputs = keys[: len(SLOTS)]
        for key in keys[len(SLOTS) :]:
            self._used(key)
        found = {owner for owner in owners if owner is not None}
        attentions = {owner for owner in found if owner in self.attentions}
        self.used_elsewhere |= found - attentions
        if len(attentions) != 1:
            for key in inputs:
                self._used(key)
            return
        attention = attentions.pop()
        for slot, key in zip(SLOTS, inputs, strict=True):
            label = f'{attention}:{slot}'
            known = self._known.get(key)
            self.read[label].append(known)
            if known is not None:
                known.readers.add(label)

    def _used(self, key: Key) -> None:
        known = self._known.get(key)
        if known is not None:
            known.elsewhere = True


def find_norm_groups(
    model: nn.Module, run: Callable[[], Any]
) -> list[NormGroup]:
    """Return the LayerNorms that only linear layers and convolutions read.

    Args:
        model: Float model in eval mode.
        run: Runs it once, without torch's fused attention kernels.

    Returns:
        Groups in the order of the model's modules.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if _is_norm(module)
        or isinstance(module, (*READERS, nn.MultiheadAttention))
    }
    owners = {
        id(parameter): name
        for name, module in layers.items()
        for parameter in module.parameters(recurse=False)
    }
    recorder = _LayoutRecorder(
        owners,
        attentions={
            name
            for name, module in layers.items()
            if isinstance(module, nn.MultiheadAttention)
        },
    )
    with _names_of_running(model, recorder.running), recorder:
        run()
    barred = shared_layers(model, layers) | recorder.used_elsewhere
    return [
        group
        for name, module in layers.items()
        if isinstance(module, nn.LayerNorm)
        for group in _group(name, module, layers, recorder, barred)
    ]


@contextmanager
def _names_of_running(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the modules that run in a list."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            for handle in _hooks(name, module, running):
                stack.callback(handle.remove)
        yield


def _hooks(
    name: str, module: nn.Module, running: list[str]
) -> tuple[RemovableHandle, RemovableHandle]:
    def before(_module: nn.Module, _args: Any) -> None:
        running.append(name)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    return (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    )


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.elementwise_affine
    )


def _group(
    name: str,
    norm: nn.LayerNorm,
    layers: Mapping[str, nn.Module],
    recorder: _LayoutRecorder,
    barred: set[str],
) -> list[NormGroup]:
    """Return the group of a norm, or nothing if others read it as well."""
    outputs = [one for one in recorder.ends if one.giver == name]
    if name in barred or not outputs:
        return []
    if any(one.elsewhere or not one.readers for one in outputs):
        return []
    labels = sorted({label for one in outputs for label in one.readers})
    readers = tuple(_reader(label, layers) for label in labels)
    channels = norm.normalized_shape[0]
    for reader in readers:
        sources = {
            None if one is None else one.giver
            for one in recorder.read[reader.label]
        }
        if sources != {name} or reader.name in barred:
            return []
        if (
            not isinstance(reader.module, (*READERS, nn.MultiheadAttention))
            or reader.num_channels != channels
        ):
            return []
    padders = _padders(name, channels, recorder.paddings)
    return [
        NormGroup(
            name=name,
            norm=norm,
            readers=readers,
            between=_between(
                outputs, readers, recorder, padded=padders is None
            ),
            padders=padders or (),
        )
    ]


def _padders(
    norm: str, channels: int, paddings: list[_Padding]
) -> tuple[str, ...] | None:
    """Return the modules that pad a norm's output; None if one cannot.

    While such a module runs, nothing else may be padded: it would get the
    same value.
    """
    own = [one for one in paddings if one.giver == norm]
    names = {one.running[-1] for one in own if one.running}
    possible = all(one.running and one.channels == channels for one in own)
    if not possible or any(
        one.giver != norm and names.intersection(one.running)
        for one in paddings
    ):
        return None
    return tuple(sorted(names))


def _between(
    outputs: list[TrackedTensor],
    readers: tuple[Reader, ...],
    recorder: _LayoutRecorder,
    *,
    padded: bool,
) -> str:
    found = ['zero padding on the way'] if padded else []
    found += [
        recorder.special[id(one)]
        for one in outputs
        if id(one) in recorder.special
    ]
    found += [
        f'zero padding of {reader.label}' for reader in readers if reader.pads
    ]
    return ', '.join(dict.fromkeys(found))


def _reader(label: str, layers: Mapping[str, nn.Module]) -> Reader:
    name, _, slot = label.partition(':')
    return Reader(name=name, module=layers[name], slot=slot)
