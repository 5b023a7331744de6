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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import name_tensors
from taskptq.registry import NETWORK_PARTS

__all__ = [
    'MAIN',
    'NetworkParts',
    'Part',
    'RawOutputs',
    'Run',
    'capture_calls',
    'guard_rest',
    'make_part',
    'module_part',
    'nested',
    'parts_of',
    'replace_forward',
]

# A part as it runs: its inputs in order -> its outputs by name.
Run = Callable[..., Mapping[str, Tensor]]
# Name of the part that takes the images; its file has the name asked for.
MAIN = 'network'
# Outputs of a part that is one module.
OUTPUT = 'output'
BATCH, HEIGHT, WIDTH = 'batch', 'height', 'width'
# By how much a dimension is made longer to see which sizes follow it: a
# multiple of every usual stride, or one image.
STEPS = {HEIGHT: 64, WIDTH: 64}


class RawOutputs(nn.Module):
    """A function of tensors, with the modules that it calls.

    Args:
        function: Tensors -> nested tensors; all weights that it uses are
            those of ``modules``.
        modules: Dotted name in the model -> module or parameter, which the
            exported weights are named by.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        modules: Mapping[str, nn.Module | nn.Parameter],
    ) -> None:
        super().__init__()
        self._function = function
        for name, module in modules.items():
            *path, last = name.split('.')
            parent: nn.Module = self
            for key in path:
                if key not in parent._modules:
                    parent.add_module(key, nn.Module())
                parent = parent.get_submodule(key)
            if isinstance(module, nn.Parameter):
                parent.register_parameter(last, module)
            else:
                parent.add_module(last, module)

    def named_outputs(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Run the function; return its tensors by their dotted names."""
        return dict(name_tensors(self._function(*tensors)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the function; return its tensors in order."""
        return tuple(self.named_outputs(*tensors).values())


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network to export.

    Args:
        name: ``MAIN``, or the dotted name of what it replaces.
        network: Tensors -> tuple of tensors.
        inputs: Example inputs.
        input_names: Their names.
        output_names: Names of the outputs, see :func:`nested`.
        dynamic_axes: Name of an input or output -> axis -> name of its size.
    """

    name: str
    network: RawOutputs
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_axes: Mapping[str, Mapping[int, str]]

    def longer(self, label: str) -> tuple[Tensor, ...]:
        """Return the inputs with one of their free sizes increased."""
        return longer(
            self.inputs, self.input_names, self.dynamic_axes, label=label
        )


def longer(
    inputs: Sequence[Tensor],
    names: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    *,
    label: str,
) -> tuple[Tensor, ...]:
    """Make all dimensions of one name longer, by repeating their start."""
    result = []
    for name, tensor in zip(names, inputs, strict=True):
        for axis, found in axes.get(name, {}).items():
            if found == label:
                step = min(STEPS.get(label, 1), tensor.shape[axis])
                start = tensor.narrow(axis, 0, step)
                tensor = torch.cat([tensor, start], dim=axis)
        result.append(tensor)
    return tuple(result)


@torch.no_grad()
def make_part(
    name: str,
    function: Callable[..., Any],
    *,
    modules: Mapping[str, nn.Module | nn.Parameter],
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
) -> Part:
    """Describe a part; its outputs and their free sizes are found by running.

    Args:
        name: See ``Part``.
        function: See ``RawOutputs``.
        modules: See ``RawOutputs``.
        inputs: Example inputs by name, in order.
        axes: Free sizes of the inputs: name -> axis -> name of the size.
    """
    network = RawOutputs(function, modules=modules).eval()
    tensors, names = tuple(inputs.values()), tuple(inputs)
    outputs = network.named_outputs(*tensors)
    free: dict[str, dict[int, str]] = {
        key: dict(found) for key, found in axes.items()
    }
    labels = {label for found in axes.values() for label in found.values()}
    for label in sorted(labels):
        changed = network.named_outputs(
            *longer(tensors, names, axes, label=label)
        )
        for key, tensor in changed.items():
            before = outputs[key].shape
            for axis, size in enumerate(tensor.shape):
                if size != before[axis]:
                    own = label if label not in STEPS else f'{key}.{label}'
                    free.setdefault(key, {})[axis] = own
    return Part(
        name=name,
        network=network,
        inputs=tensors,
        input_names=names,
        output_names=tuple(outputs),
        dynamic_axes=free,
    )


def image_axes(*, dynamic: bool, spatial: int = 2) -> dict[int, str]:
    """Return the free sizes of images, or of maps over them.

    Args:
        dynamic: Whether height and width are free, too.
        spatial: Axis of the height.
    """
    free = {0: BATCH}
    if dynamic:
        free |= {spatial: HEIGHT, spatial + 1: WIDTH}
    return free


def nested(outputs: Mapping[str, Tensor]) -> Any:
    """Undo ``name_tensors``: ``{'a.0': x, 'a.1': y}`` -> ``{'a': [x, y]}``.

    Keys that are numbers make lists, others dicts.
    """
    if list(outputs) == ['']:
        return outputs['']
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in outputs.items():
        key, _, rest = name.partition('.')
        groups.setdefault(key, {})[rest] = tensor
    built = {key: nested(group) for key, group in groups.items()}
    if all(key.isdigit() for key in built):
        return list(built.values())
    return built


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


def capture_calls(
    modules: Mapping[str, nn.Module], run: Callable[[], Any]
) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of the first call of each module.

    Args:
        modules: Modules by name.
        run: Runs the model.
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def keep(
        module: nn.Module, args: tuple[Any, ...], kwargs: Any, *, name: str
    ) -> None:
        calls.setdefault(name, (*args, *kwargs.values()))

    handles = [
        module.register_forward_pre_hook(
            partial(keep, name=name), with_kwargs=True
        )
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def module_part(
    name: str, module: nn.Module, *, args: tuple[Any, ...] | None, label: str
) -> Part:
    """Describe a whole module as a part.

    Args:
        name: Its dotted name in the model.
        module: The module; its forward takes tensors.
        args: Arguments of a call of it.
        label: Name of the size of the arguments' first dimension.

    Raises:
        ValueError: If it was not called, or not with tensors alone.
    """
    if not args or not all(isinstance(arg, Tensor) for arg in args):
        problem = 'other arguments than tensors' if args else 'no call'
        raise ValueError(
            f'{name} ({type(module).__name__}) had {problem} on the example '
            'images, so that it cannot be exported by itself: register '
            'NetworkParts for its model'
        )
    # A few rows suffice, and are faster to verify.
    inputs = {f'input{i}': arg[:64].clone() for i, arg in enumerate(args)}
    return make_part(
        name,
        lambda *tensors: {OUTPUT: module(*tensors)},
        modules={name: module},
        inputs=inputs,
        axes={key: {0: label} for key in inputs},
    )


def one_output(outputs: Mapping[str, Tensor]) -> Any:
    """Return outputs as a module returned them: a tensor, list or tuple."""
    found = nested(outputs)[OUTPUT]
    return tuple(found) if isinstance(found, list) else found


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
            if getattr(type(self.model), name) is not getattr(base, name):
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
    """Yield the children that have weights, and the items of lists."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from with_parameters(child, prefix=f'{prefix}.{name}')
        elif next(child.parameters(), None) is not None:
            yield f'{prefix}.{name}', child
