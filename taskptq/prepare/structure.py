"""Reconstruction blocks of a model that no list names.

Models repeat their blocks, and blocks add their input to what they compute.
Both are visible from the modules alone: siblings of one class in a container,
and the text of a class's forward.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from torch import nn

from taskptq.modules.base import QuantModule

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(
    model: nn.Module,
    *,
    listed: Collection[str] = (),
    calls: Mapping[str, int] | None = None,
) -> set[str]:
    """Return the names of the modules that look like blocks.

    A block has a forward of its own, holds at least two quantized layers, is
    called once in a pass, and neither holds nor is part of a listed block.
    Repeated siblings whose forward adds their input come first, then other
    repeated siblings, then other modules that add their input; of nested
    modules of one such kind the innermost is taken.

    Args:
        model: Swapped model.
        listed: Names of the blocks known by their class or by the user.
        calls: How often a forward pass calls each module, by name; None if
            that is unknown.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if name
        and (calls is None or calls.get(name) == 1)
        and _may_be_block(module)
    }
    repeated = _repeated_classes(model)
    found = set(listed)
    for is_kind in (
        lambda module: type(module) in repeated and _is_residual(module),
        lambda module: type(module) in repeated,
        _is_residual,
    ):
        found |= _innermost(modules, is_kind, taken=found)
    return found - set(listed)


def _innermost(
    modules: Mapping[str, nn.Module],
    is_kind: Callable[[nn.Module], bool],
    *,
    taken: set[str],
) -> set[str]:
    """Names of modules of a kind that hold no others and overlap no taken."""
    around = {parent for name in taken for parent in _parents(name)}
    free = {
        name
        for name, module in modules.items()
        if name not in taken
        and name not in around
        and not taken.intersection(_parents(name))
        and is_kind(module)
    }
    return free - {parent for name in free for parent in _parents(name)}


def _parents(name: str) -> list[str]:
    """Names of the modules around one, without the model itself."""
    parts = name.split('.')
    return ['.'.join(parts[:end]) for end in range(1, len(parts))]


def _repeated_classes(model: nn.Module) -> set[type[nn.Module]]:
    """Classes of which some container holds two modules or more."""
    found: set[type[nn.Module]] = set()
    for module in model.modules():
        if isinstance(module, _CONTAINERS):
            counts = Counter(type(child) for child in module.children())
            found.update(cls for cls, count in counts.items() if count > 1)
    return found


def _may_be_block(module: nn.Module) -> bool:
    """Whether a module computes something of its own from two layers."""
    if isinstance(module, QuantModule):
        return False
    bare = {nn.Module.forward, *(cls.forward for cls in _CONTAINERS)}
    return type(module).forward not in bare and _num_layers(module) > 1


def _num_layers(module: nn.Module) -> int:
    """Number of quantized layers; an attention is one with its projections."""
    if isinstance(module, QuantModule):
        return 1
    return sum(_num_layers(child) for child in module.children())


def _is_residual(module: nn.Module) -> bool:
    """Whether a module adds its input to what it computes from it."""
    return _adds_input(type(module).forward)


@lru_cache(maxsize=1024)
def _adds_input(forward: Callable[..., object]) -> bool:
    """Whether the text of a forward has a sum with one of its arguments.

    >>> def block(self, x):
    ...     identity = x
    ...     out = self.conv(x)
    ...     return out + identity
    >>> _adds_input(block)
    True
    """
    try:
        text = textwrap.dedent(inspect.getsource(forward))
        tree = ast.parse(text)
    except (OSError, TypeError, SyntaxError):
        return False  # compiled, scripted, or written in place
    inputs = {
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arguments)
        for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs)
    } - {'self'}
    computed: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names = {t.id for t in node.targets if isinstance(t, ast.Name)}
            if isinstance(node.value, ast.Name) and node.value.id in inputs:
                inputs |= names
            elif _calls(node.value):
                computed |= names
    return any(
        _is_sum(left, right, inputs, computed)
        or _is_sum(right, left, inputs, computed)
        for left, right in _sums(tree)
    )


def _sums(tree: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    found: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            found.append((node.left, node.right))
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            found.append((node.target, node.value))
    return found


def _is_sum(
    term: ast.expr, other: ast.expr, inputs: set[str], computed: set[str]
) -> bool:
    """Whether one term is an input and the other is computed."""
    if not (isinstance(term, ast.Name) and term.id in inputs):
        return False
    if isinstance(other, ast.Name):
        return other.id in computed
    return _calls(other)


def _calls(expression: ast.expr) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(expression))
