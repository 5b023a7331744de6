"""Which methods of a class multiply, by their compiled code alone.

For modules that no batch has reached. A call from a function outside of the
class does not show.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.product_calls import CALLS

_NAMESPACES = (torch, F, Tensor)
# Attributes that nothing but a product has.
_NAMES = frozenset(
    name
    for name in ('matmul', 'mm', 'bmm', 'addmm', 'baddbmm', 'addbmm', 'mv')
    if getattr(Tensor, name) in CALLS
)


@lru_cache(maxsize=1024)
def product_methods(cls: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the methods of a class that multiply.

    >>> class Gram(nn.Module):
    ...     def forward(self, x):
    ...         return x @ x.T
    >>> product_methods(Gram), product_methods(nn.ReLU)
    (('forward',), ())

    Args:
        cls: Class of a module; what nn.Module itself defines does not count.
    """
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, FunctionType):
                found.setdefault(name, _multiplies(function))
    return tuple(
        name for name, does in found.items() if does and name[:2] != '__'
    )


def _multiplies(function: FunctionType) -> bool:
    return any(
        _is_product(before, now, function.__globals__)
        for code in _codes(function.__code__)
        for before, now in _pairs(code)
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code, and that of functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _pairs(
    code: CodeType,
) -> Iterator[tuple[dis.Instruction | None, dis.Instruction]]:
    before = None
    for instruction in dis.get_instructions(code):
        yield before, instruction
        before = instruction


def _is_product(
    before: dis.Instruction | None,
    now: dis.Instruction,
    names: dict[str, Any],
) -> bool:
    """Whether an instruction is, or loads, a product."""
    operation = now.opname
    if 'MATRIX_MULTIPLY' in operation:
        return True
    if operation == 'BINARY_OP':
        return now.argrepr.startswith('@')
    if operation == 'LOAD_GLOBAL':
        return _is_listed(names.get(now.argval))
    if operation not in ('LOAD_ATTR', 'LOAD_METHOD'):
        return False
    if now.argval in _NAMES:
        return True
    of: Any = None if before is None else before.argval
    # nn.functional.conv2d, F.conv2d, torch.einsum
    space = F if of == 'functional' else names.get(of)
    known = any(space is namespace for namespace in _NAMESPACES)
    return known and _is_listed(getattr(space, now.argval, None))


def _is_listed(value: Any) -> bool:
    return any(value is function for function in CALLS)
