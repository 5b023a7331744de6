"""Networks of plain tensors, as a runtime gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import name_tensors
from taskptq.engine.exportable import exportable_calls
from taskptq.engine.module_calls import Call, tensors_of
from taskptq.engine.traced_sizes import traced_sizes

__all__ = [
    'BATCH',
    'HEIGHT',
    'MAIN',
    'WIDTH',
    'Part',
    'RawOutputs',
    'Run',
    'image_axes',
    'make_part',
    'module_part',
    'nested',
    'one_output',
    'stem_of',
]

# A part as it runs: its inputs in order -> its outputs by name.
Run = Callable[..., Mapping[str, Tensor]]
# Name of the part that takes the images; its file has the name asked for.
MAIN = 'network'
# Outputs of a part that is one module.
OUTPUT = 'output'
# Between that and the length of a sequence whose end is not a tensor.
OF = '_of_'
BATCH, HEIGHT, WIDTH = 'batch', 'height', 'width'
# Between the name of a size and how many times it a dimension is.
TIMES = '*'
# By how much a dimension is made longer to see which sizes follow it: a
# multiple of every usual stride, or one image.
STEPS = {HEIGHT: 64, WIDTH: 64}
# Of an example for a module.
MOST_ROWS = 64


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
        # Wrapped, since a module would be registered under a name of its own.
        self._function = partial(function)
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
        if not torch.onnx.is_in_onnx_export():
            return tuple(self.named_outputs(*tensors).values())
        with exportable_calls(), traced_sizes(self):
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
    """Make all dimensions of one name longer, by repeating their start.

    Those that are a multiple of it become longer by as many times as much.
    """
    stem = stem_of(label)
    result = []
    for name, tensor in zip(names, inputs, strict=True):
        for axis, found in axes.get(name, {}).items():
            if stem_of(found) == stem:
                step = STEPS.get(stem, 1) * _factor(found)
                step = min(step, tensor.shape[axis])
                start = tensor.narrow(axis, 0, step)
                tensor = torch.cat([tensor, start], dim=axis)
        result.append(tensor)
    return tuple(result)


def stem_of(label: str) -> str:
    """Return the size that a size is a multiple of, by their names."""
    return label.partition(TIMES)[0]


def _factor(label: str) -> int:
    return int(label.partition(TIMES)[2] or 1)


def _multiple(label: str, factor: int) -> str:
    """Name a size that is a multiple of another.

    A runtime takes sizes of one name for equal ones.
    """
    return label if factor == 1 else f'{label}{TIMES}{factor}'


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
    labels = {
        stem_of(label) for found in axes.values() for label in found.values()
    }
    for label in sorted(labels):
        changed = network.named_outputs(
            *longer(tensors, names, axes, label=label)
        )
        for key, tensor in changed.items():
            before = outputs[key].shape
            for axis, size in enumerate(tensor.shape):
                if size != before[axis]:
                    own = _multiple(label, size - before[axis])
                    if label in STEPS:
                        own = f'{key}.{label}'
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
        # What was not a tensor has no name.
        last = max(int(key) for key in built)
        return [built.get(str(i)) for i in range(last + 1)]
    return built


def module_part(
    name: str, module: nn.Module, *, call: Call | None, label: str
) -> Part:
    """Describe a whole module as a part.

    Args:
        name: Its dotted name in the model.
        module: The module.
        call: A call of it; its tensors are the inputs of the part.
        label: Name of the size of their first dimensions.

    Raises:
        ValueError: If it was not called, or not with tensors alone.
    """
    _check_call(name, module, call)
    assert call is not None
    rows = [len(tensor) for tensor in call.tensors]
    # A few rows suffice, and are faster to verify.
    most = MOST_ROWS if len(set(rows)) == 1 else max(rows)
    inputs = {
        f'input{i}': tensor[:most].clone()
        for i, tensor in enumerate(call.tensors)
    }
    least = min(rows)
    whole = all(count % least == 0 for count in rows)
    axes = {
        key: {0: _multiple(label, count // least)}
        for key, count in zip(inputs, rows, strict=True)
        if whole or count == least
    }

    def forward(*tensors: Tensor) -> dict[str, Any]:
        args, kwargs = call.arguments(tensors)
        found = module(*args, **kwargs)
        return {_output_name(found): found}

    return make_part(
        name, forward, modules={name: module}, inputs=inputs, axes=axes
    )


def _check_call(name: str, module: nn.Module, call: Call | None) -> None:
    problem = ''
    if call is None:
        problem = 'was not called'
    elif call.unknown is not None:
        problem = f'was given a {call.unknown}'
    elif not call.tensors:
        problem = 'was given no tensor'
    elif call.differs:
        problem = 'was called in several ways'
    if problem:
        raise ValueError(
            f'{name} ({type(module).__name__}) {problem} on the example '
            'images, so that it cannot be exported by itself: register '
            'NetworkParts for its model'
        )


def _output_name(found: Any) -> str:
    """Return what the outputs of a module are called.

    A sequence that ends in something else than tensors, as ``(scores,
    None)``, tells its length.
    """
    if isinstance(found, (list, tuple)) and not tensors_of(found[-1:]):
        return f'{OUTPUT}{OF}{len(found)}'
    return OUTPUT


def one_output(outputs: Mapping[str, Tensor]) -> Any:
    """Return outputs as a module returned them: a tensor, list or tuple."""
    ((name, found),) = nested(outputs).items()
    if not isinstance(found, list):
        return found
    missing = int(name.partition(OF)[2] or 0) - len(found)
    return tuple(found + [None] * missing)
