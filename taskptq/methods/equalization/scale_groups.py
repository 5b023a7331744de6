"""Find layers that read other layers' outputs through nothing but ReLUs.

One forward pass is watched call by call, so it works however the model is
written: with modules, functions or layers that run several times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ['LayerGroup', 'find_layer_groups']

READERS = (nn.Linear, nn.Conv2d)
GIVERS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
_AFFINE = {'linear', 'conv2d', 'batch_norm', 'layer_norm'}
# f(s x) = s f(x) for s > 0, channel by channel.
HOMOGENEOUS = {'relu', 'relu_', 'leaky_relu', 'leaky_relu_', 'prelu'}
# Functions that may return their input itself.
_PASSING = {'dropout', 'dropout_'}

# Identity and version of a tensor at one moment.
Key = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """A layer, and all layers that read its channels.

    Args:
        giver: Linear, Conv2d, BatchNorm2d or LayerNorm whose output channels
            can be scaled through its weight and bias.
        readers: (name, Linear or Conv2d) of all that read these channels.
        name: Name of ``giver``.
        gains: Reader -> factor of each of its output channels, (O,), in the
            BatchNorm that alone reads it.
        source: Name of the layer that a BatchNorm alone reads; empty if the
            giver is no BatchNorm, or others read that layer too.
        source_layer: That layer.
    """

    name: str
    giver: nn.Module
    readers: tuple[tuple[str, nn.Module], ...]
    gains: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    source: str = ''
    source_layer: nn.Module | None = None


@dataclass
class TrackedTensor:
    """The source and the readers of a tensor."""

    giver: str | None = None
    readers: set[str] = field(default_factory=set)
    elsewhere: bool = False


class Recorder(TorchFunctionMode):
    """Record what happens to the outputs of layers."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self._owners = owners  # id of a weight or bias -> name of its layer
        self._kept: list[Tensor] = []  # so that no id is reused
        self._known: dict[Key, TrackedTensor] = {}
        self.used_elsewhere: set[str] = set()
        self.ends: list[TrackedTensor] = []
        self.read: dict[str, list[TrackedTensor | None]] = defaultdict(list)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        tensors = list(_tensors((args, kwargs)))
        keys = [tensor_key(x) for x in tensors]
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        changed = any(
            tensor_key(x) != key for x, key in zip(tensors, keys, strict=True)
        )
        if tensors and (outputs or changed):
            self._kept += tensors + outputs
            self._note(name, tensors, keys, outputs)
        return result

    def _note(
        self,
        name: str,
        tensors: list[Tensor],
        keys: list[Key],
        outputs: list[Tensor],
    ) -> None:
        layer = self._layer(name, tensors)
        if layer is not None:
            found = self._known.get(keys[0])
            self.read[layer].append(found)
            if found is not None:
                found.readers.add(layer)
            self._start(outputs[0], layer)
            return
        for x in tensors:
            owner = self._owners.get(id(x))
            if owner is not None:
                self.used_elsewhere.add(owner)
        first = self._known.get(keys[0])
        if any(key in self._known for key in keys[1:]):
            first = None  # slopes that another layer computes
        follows = name in HOMOGENEOUS or (
            name in _PASSING and outputs and outputs[0] is tensors[0]
        )
        if first is not None and follows and len(outputs) == 1:
            if tensor_key(outputs[0]) != keys[0] and name in HOMOGENEOUS:
                # One record for the tensors before and after the ReLU, so
                # that other readers of either count.
                self._known[tensor_key(outputs[0])] = first
            return
        for key in keys:
            known = self._known.get(key)
            if known is not None:
                known.elsewhere = True

    def _layer(self, name: str, tensors: list[Tensor]) -> str | None:
        """Return the layer whose own operation this is."""
        if name not in _AFFINE:
            return None
        owners = {
            self._owners[id(x)] for x in tensors[1:] if id(x) in self._owners
        }
        return owners.pop() if len(owners) == 1 else None

    def _start(self, output: Tensor, layer: str) -> None:
        tensor = TrackedTensor(giver=layer)
        self._known[tensor_key(output)] = tensor
        self.ends.append(tensor)


def find_layer_groups(
    model: nn.Module, run: Callable[[], Any]
) -> list[LayerGroup]:
    """Return the layers whose output channels can be scaled exactly.

    In every call their outputs go through ReLUs (or nothing) into linear
    layers and convolutions only, and these read nothing else. Layers whose
    weights are shared, or read by other functions, are left out.

    Args:
        model: Float model in eval mode.
        run: Runs it once.

    Returns:
        Groups in the order of the model's modules.
    """
    layers, recorder = _record(model, run)
    barred = shared_layers(model, layers) | recorder.used_elsewhere
    readers = _readers(recorder)
    sources = _sources(recorder)
    gains = _gains(layers, sources)
    groups = []
    for name, giver in layers.items():
        names = readers.get(name)
        if not names or name in barred or names & barred:
            continue
        if any(
            sources[reader] != {name}
            or not isinstance(layers[reader], READERS)
            for reader in names
        ):
            continue
        source = _source(name, layers, sources, readers)
        source = '' if source in barred else source
        groups.append(
            LayerGroup(
                name=name,
                giver=giver,
                readers=tuple(
                    (reader, layers[reader])
                    for reader in layers
                    if reader in names
                ),
                gains={
                    reader: gains[reader] for reader in names & gains.keys()
                },
                source=source,
                source_layer=layers.get(source),
            )
        )
    return groups


def _source(
    name: str,
    layers: Mapping[str, nn.Module],
    sources: Mapping[str, set[str | None]],
    readers: Mapping[str, set[str]],
) -> str:
    """Return the layer whose only reader is this norm; empty if none is."""
    found = sources.get(name, set())
    if not isinstance(layers[name], nn.BatchNorm2d) or len(found) != 1:
        return ''
    (source,) = found
    return source if source and readers.get(source) == {name} else ''


def norm_gains(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return by layer the factors of the BatchNorm that reads its outputs.

    Args:
        model: Float model in eval mode.
        run: Runs it once.

    Returns:
        Name of the layer -> gamma / sigma, (O,) float64.
    """
    layers, recorder = _record(model, run)
    return _gains(layers, _sources(recorder))


def _record(
    model: nn.Module, run: Callable[[], Any]
) -> tuple[dict[str, nn.Module], Recorder]:
    """Watch one run; return the layers that count and what was seen."""
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GIVERS) and _has_channel_weights(module)
    }
    owners = {
        id(parameter): name
        for name, module in layers.items()
        for parameter in module.parameters(recurse=False)
    }
    recorder = Recorder(owners)
    with recorder:
        run()
    return layers, recorder


def _sources(recorder: Recorder) -> dict[str, set[str | None]]:
    return {
        name: {None if x is None else x.giver for x in found}
        for name, found in recorder.read.items()
    }


def _gains(
    layers: Mapping[str, nn.Module], sources: Mapping[str, set[str | None]]
) -> dict[str, Tensor]:
    """Return the factors of the BatchNorms that follow a layer, by layer."""
    found = {}
    for name, norm in layers.items():
        source = sources.get(name, set())
        if not isinstance(norm, nn.BatchNorm2d) or len(source) != 1:
            continue
        (layer,) = source
        if layer is not None and norm.running_var is not None:
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            found[layer] = (norm.weight.detach().double() / deviation).cpu()
    return found


def _has_channel_weights(layer: nn.Module) -> bool:
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        return False
    return getattr(layer, 'weight', None) is not None  # affine=False


def _readers(recorder: Recorder) -> dict[str, set[str]]:
    """Return the readers of each layer, except if others read it too."""
    found: dict[str, set[str]] = defaultdict(set)
    other = {x.giver for x in recorder.ends if x.elsewhere or not x.readers}
    for tensor in recorder.ends:
        if tensor.giver is not None and tensor.giver not in other:
            found[tensor.giver] |= tensor.readers
    return found


def shared_layers(
    model: nn.Module, layers: Mapping[str, nn.Module]
) -> set[str]:
    """Return the names of layers that share a parameter with a module."""
    holders: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].add(id(module))
    return {
        name
        for name, module in layers.items()
        if any(
            len(holders[id(parameter)]) > 1
            for parameter in module.parameters(recurse=False)
        )
    }


def tensor_key(x: Tensor) -> Key:
    with torch._C.DisableTorchFunction():
        return id(x), x._version


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
