"""How the layers behind a network's features are used, seen by running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskptq.engine.module_calls import Call, captured_calls, tensors_of

__all__ = ['ObservedLayers', 'observe_layers']

SCORE = 'score_thr'


@dataclass(kw_only=True)
class ObservedLayers:
    """What was seen while a model predicted.

    Args:
        features: Last result of ``extract_feat``.
        calls: The first call of each layer that was called.
        weights: Names of the parameters of the others that were read.
        unused: Names of those that had no part in it.
    """

    features: tuple[Tensor, ...] = ()
    calls: dict[str, Call] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def on_features(self, name: str) -> bool:
        """Whether a layer takes features and nothing else."""
        call = self.calls[name]
        known = {id(tensor) for tensor in self.features}
        plain = call.unknown is None and not call.differs
        return (
            plain
            and len(call.tensors) > 0
            and all(id(tensor) in known for tensor in call.tensors)
        )

    def takes_maps(self, name: str) -> bool:
        """Whether a layer takes maps as large as features of the images."""
        sizes = {(len(x), *x.shape[2:]) for x in self.features if x.ndim == 4}
        return any(
            tensor.ndim == 4 and (len(tensor), *tensor.shape[2:]) in sizes
            for tensor in self.calls[name].tensors
        )

    def run_on(
        self, name: str, layer: nn.Module, features: tuple[Tensor, ...]
    ) -> Any:
        """Call a layer on other features as it was called on these."""
        call = self.calls[name]
        places = {id(tensor): i for i, tensor in enumerate(self.features)}
        tensors = tuple(features[places[id(x)]] for x in call.tensors)
        args, kwargs = call.arguments(tensors)
        return layer(*args, **kwargs)


@torch.no_grad()
def observe_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    predict: Callable[[], Any],
) -> ObservedLayers:
    """Let a model predict, and see how it uses some of its layers.

    If some were not called, it predicts again with any score high enough:
    images without a single detection show no layer that draws masks.

    Args:
        model: Detector.
        layers: Its layers by name.
        predict: Runs it.
    """
    seen = ObservedLayers()
    inner = model.extract_feat

    def extract_feat(images: Tensor) -> Any:
        found = inner(images)
        seen.features = tensors_of(found)
        return found

    with mock.patch.object(model, 'extract_feat', extract_feat):
        seen.calls = captured_calls(layers, predict)
        if seen.calls.keys() != layers.keys():
            with any_score(model), Reads(layers) as reads:
                seen.calls = captured_calls(layers, predict)
            rest = [name for name in layers if name not in seen.calls]
            seen.weights = [
                f'{name}.{key}' for name in rest for key in reads.found[name]
            ]
            seen.unused = [name for name in rest if not reads.found[name]]
    return seen


@contextmanager
def any_score(model: nn.Module) -> Iterator[None]:
    """Let boxes of any score count as detections."""
    changed = []
    for module in model.modules():
        for config in _with_scores(getattr(module, 'test_cfg', None)):
            changed.append((config, config[SCORE]))
            config[SCORE] = 0.0
    try:
        yield
    finally:
        # Modules may share a config: the first value was its own.
        for config, value in reversed(changed):
            config[SCORE] = value


def _with_scores(config: Any) -> Iterator[Any]:
    if not isinstance(config, Mapping):
        return
    if isinstance(config.get(SCORE), (int, float)):
        yield config
    for inner in config.values():
        yield from _with_scores(inner)


class Reads(TorchFunctionMode):
    """See which parameters of some layers a model's code reads.

    Args:
        layers: Layers by name.

    Attributes:
        found: Name of a layer -> names of its parameters that were read.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {name: [] for name in layers}
        self._known = {
            id(parameter): (name, key)
            for name, layer in layers.items()
            for key, parameter in layer.named_parameters()
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note the parameters among the arguments; pass on the call."""
        result = func(*args, **(kwargs or {}))
        # Asking for a size or a device reads no weight.
        if isinstance(result, Tensor):
            for value in args:
                name, key = self._known.get(id(value), ('', ''))
                if name and key not in self.found[name]:
                    self.found[name].append(key)
        return result
