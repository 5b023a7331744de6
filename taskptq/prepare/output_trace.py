"""Follow the tensors of one run from operator to operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from taskptq.core import Quantizer
from taskptq.prepare.grid_plan import (
    ABSORBED,
    GRID,
    MOVER,
    OTHER,
    PRODUCT,
    SMOOTH,
    SQUASH,
    SUM,
    Operator,
)

KINDS: dict[Any, str] = {
    F.conv2d: PRODUCT,
    F.relu: ABSORBED,
    torch.relu: ABSORBED,
    torch.relu_: ABSORBED,
    Tensor.relu: ABSORBED,
    Tensor.relu_: ABSORBED,
    F.max_pool2d: MOVER,
    torch.max_pool2d: MOVER,
    F.interpolate: MOVER,
    F.pixel_shuffle: MOVER,
    torch.flatten: MOVER,
    Tensor.flatten: MOVER,
    Tensor.view: MOVER,
    Tensor.reshape: MOVER,
    Tensor.permute: MOVER,
    Tensor.transpose: MOVER,
    Tensor.contiguous: MOVER,
    Tensor.chunk: MOVER,
    torch.chunk: MOVER,
    torch.split: MOVER,
    Tensor.split: MOVER,
    Tensor.__getitem__: MOVER,
    torch.add: SUM,
    Tensor.add: SUM,
    Tensor.add_: SUM,
    Tensor.__add__: SUM,
    Tensor.__radd__: SUM,
    Tensor.__iadd__: SUM,
    torch.cat: SUM,
    F.avg_pool2d: SUM,
    F.adaptive_avg_pool2d: SUM,
    torch.sigmoid: SQUASH,
    Tensor.sigmoid: SQUASH,
    F.hardsigmoid: SQUASH,
    torch.mul: SMOOTH,
    Tensor.mul: SMOOTH,
    Tensor.__mul__: SMOOTH,
}
ADDITIONS = (
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
)


@dataclass(kw_only=True)
class Trace:
    """What one run computed.

    Args:
        operators: In order of execution; a quantizer has its name.
        givers: Tensor -> the modules that computed and returned it, inner
            ones first, each with the number of operators before.
        returned: Module -> tensors that it returned, one for each call.
        outputs: Tensors that the model returned.
    """

    operators: list[Operator] = field(default_factory=list)
    givers: dict[str, list[tuple[str, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    returned: dict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )
    outputs: list[str] = field(default_factory=list)

    def first_reader(self, name: str) -> int:
        """Return the number of operators before the first that reads it."""
        for number, operator in enumerate(self.operators):
            if name in operator.inputs:
                return number
        return len(self.operators)


@torch.no_grad()
def trace_operators(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Run a model and return its operators.

    Args:
        model: Prepared model, whose quantizers are off.
        run: Runs it once.
    """
    mode = _Following(model)
    with mode.watching(), mode:
        mode.finish(run())
    return mode.trace


class _Following(TorchFunctionMode):
    """Name every tensor that functions of torch return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        stored = (*model.parameters(), *model.buffers())
        self._stored = {id(x) for x in stored}
        self._model_names = {id(m): n for n, m in model.named_modules()}
        self._names: dict[int, str] = {}
        # A tensor that is kept cannot lend its id to another one.
        self._kept: list[Any] = []
        self._inside = 0
        # How many tensors there were when each running module was entered.
        self._entered: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call on, and take the call in."""
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        inputs = self._inputs(args, kwargs)
        self._inside += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self._inside -= 1
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if outputs and inputs:
            names = tuple(self._name(x) for x in outputs)
            kind = kind_of(func, args, kwargs)
            adds = kind == SUM and func in ADDITIONS
            self._add(kind, inputs, names, adds=adds)
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what modules return, and what quantizers read."""
        handles = [
            torch_hooks.register_module_forward_pre_hook(self._enter),
            torch_hooks.register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self, out: Any) -> None:
        """Note what the model returned."""
        self.trace.outputs = [
            self._names[id(x)]
            for x in tree_leaves(out)
            if isinstance(x, Tensor) and id(x) in self._names
        ]

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._entered.append(len(self._kept))
        if isinstance(module, Quantizer):
            self._inside += 1

    def _leave(self, module: nn.Module, args: Any, out: Any) -> Any:
        name = self._model_names.get(id(module))
        before = self._entered.pop()
        if isinstance(module, Quantizer):
            # Off, it returns its input: readers have to see another tensor.
            out = out.view_as(out)
            self._inside -= 1
            inputs = self._inputs(args, {})
            if name is not None and inputs:
                made = self._name(out)
                self._add(GRID, inputs, (made,), name=name)
            return out
        if name is not None and isinstance(out, Tensor):
            found = self._names.get(id(out))
            if found is not None:
                self.trace.returned[name].append(found)
            if found is not None and int(found[1:]) >= before:
                now = len(self.trace.operators)
                self.trace.givers[found].append((name, now))
        return None

    def _inputs(self, args: Any, kwargs: Any) -> tuple[str, ...]:
        """Return the names of the tensors that a call computes with."""
        found = []
        for x in tree_leaves((args, kwargs)):
            if not isinstance(x, Tensor) or id(x) in self._stored:
                continue
            # What nothing has computed is an input, or made from no tensor.
            found.append(self._names.get(id(x)) or self._name(x))
        return tuple(found)

    def _name(self, x: Tensor) -> str:
        name = f't{len(self._kept)}'
        self._kept.append(x)
        self._names[id(x)] = name
        return name

    def _add(
        self,
        kind: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        *,
        name: str = '',
        adds: bool = False,
    ) -> None:
        # A quantizer that runs for several tensors is several operators.
        number = len(self.trace.operators)
        self.trace.operators.append(
            Operator(
                name=f'{name}#{number}',
                kind=kind,
                inputs=inputs,
                outputs=outputs,
                adds=adds,
            )
        )


def kind_of(func: Any, args: Any, kwargs: Any) -> str:
    """Return what a function of torch does to a grid."""
    kind = KINDS.get(func, OTHER)
    if func is F.interpolate:
        # Files interpolate in floats; nearest neighbors are moved codes.
        mode = kwargs.get('mode', args[3] if len(args) > 3 else 'nearest')
        return MOVER if mode == 'nearest' else OTHER
    tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    if kind in (SUM, SMOOTH) and len(tensors) < 2:
        return kind if func in (F.avg_pool2d, F.adaptive_avg_pool2d) else OTHER
    return kind
