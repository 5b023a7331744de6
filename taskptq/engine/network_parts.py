"""The network part of a model: what a runtime executes in the host's place.

A host's model is a network and much around it: preprocessing, selection of
proposals, decoding, NMS, pasting of masks, metrics. ``NetworkParts`` cuts the
network out as modules from plain tensors to plain tensors (``parts``), and
puts functions in its place (``install``), so that the host's own code around
it evaluates what a runtime computes. Own families register a subclass under
the dotted name of their model's class, as adapters do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from taskptq.engine.raw_outputs import Part, Run
from taskptq.registry import NETWORK_PARTS

__all__ = [
    'NetworkParts',
    'guard_rest',
    'host_class',
    'parts_of',
    'replace_forward',
    'with_parameters',
]


# Layers of RoI extractors that have no weights.
POOLING = 'roi_layers'


def replace_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Call a function in the place of a module's ``forward``."""
    module.forward = function
    module.taskptq_replaced = True


def guard_rest(model: nn.Module) -> None:
    """Make every layer that is not replaced refuse to run.

    The weights of such a model were never loaded: a layer that still runs
    would compute noise.

    Args:
        model: Model whose network was replaced.
    """

    def refuse(module: nn.Module, args: Any, *, name: str) -> None:
        raise ValueError(
            f'{name} ({type(module).__name__}) runs outside of the exported '
            f'network, which has no weights for it: register NetworkParts '
            f'for {type(model).__name__} that contain it'
        )

    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None)
        replaced = getattr(module, 'taskptq_replaced', False)
        if name and own is not None and not replaced:
            module.register_forward_pre_hook(partial(refuse, name=name))


def host_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a host gave a module.

    That of a module whose products are quantized is made from it.
    """
    known: type[nn.Module] = getattr(type(module), 'float_class', type(module))
    return known


@NETWORK_PARTS.register_module(name='torch.nn.modules.module.Module')
class NetworkParts:
    """How a family of models is cut; this one refuses.

    Args:
        model: Model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Cut the network out.

        Args:
            data: Preprocessed batch of at least one image: what the model's
                ``data_preprocessor`` returns.
            dynamic: Whether the size of the images is free.

        Returns:
            The parts; the first is ``MAIN`` and takes the images.

        Raises:
            ValueError: If the model has no known network part.
        """
        raise ValueError(self._refusal())

    def image_size(self, data: Mapping[str, Any]) -> tuple[int, int]:
        """Return the height and width of the images of a batch."""
        height, width = data['inputs'].shape[-2:]
        return int(height), int(width)

    def install(self, runs: Mapping[str, Run]) -> None:
        """Let functions compute the parts of ``self.model`` from now on.

        Args:
            runs: The functions, by the names of the parts.

        Raises:
            ValueError: If they are not those of this model.
        """
        raise ValueError(self._refusal())

    def decoding(self) -> dict[str, Any] | None:
        """Return how outputs become predictions; None if it takes the host.

        Plain values, see ``taskptq.engine.onnx_decode``.
        """
        return None

    def _refusal(self) -> str:
        return (
            f'{type(self.model).__name__} has no known network part: register '
            'NetworkParts for its class (taskptq.registry.NETWORK_PARTS)'
        )

    def check_names(
        self, runs: Mapping[str, Run], expected: Sequence[str]
    ) -> None:
        """Compare the parts of a file with those of the model.

        Raises:
            ValueError: If they differ.
        """
        if set(runs) != set(expected):
            raise ValueError(
                f'the file has the parts {sorted(runs)}, but '
                f'{type(self.model).__name__} has {sorted(expected)}: check '
                'that config and file belong together'
            )

    def refuse_overridden(self, base: type, *names: str) -> None:
        """Refuse a model whose class changes what the cut relies on.

        Raises:
            ValueError: If it does.
        """
        for name in names:
            own = getattr(host_class(self.model), name)
            if own is not getattr(base, name):
                raise ValueError(
                    f'{type(self.model).__name__} has a {name}() of its own, '
                    f'unlike {base.__name__}: register NetworkParts for its '
                    'class (taskptq.registry.NETWORK_PARTS)'
                )


def parts_of(model: nn.Module) -> NetworkParts:
    """Build the NetworkParts of a model's most specific registered class.

    Args:
        model: Detector, segmentor or any other model.
    """
    NETWORK_PARTS.import_from_location()
    known = NETWORK_PARTS.module_dict
    for cls in type(model).__mro__:
        found = known.get(f'{cls.__module__}.{cls.__qualname__}')
        if found is not None:
            parts: NetworkParts = found(model)
            return parts
    return NetworkParts(model)


def with_parameters(
    module: nn.Module, *, prefix: str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children that have weights, and the items of lists.

    Of one that pools features at boxes these are its own children.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) or hasattr(child, POOLING):
            yield from with_parameters(child, prefix=f'{prefix}.{name}')
        elif next(child.parameters(), None) is not None:
            yield f'{prefix}.{name}', child
