"""The mode in which a module's own products are seen, and who enters it."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, Scheme
from taskptq.modules.call_sites import ENTRIES, find_site, is_method
from taskptq.modules.product_calls import CALLS
from taskptq.modules.products import Learning, QuantProducts

# Name of the child that holds the points of its owner.
CHILD = 'products'
_MADE: dict[tuple[type, tuple[str, ...]], type[nn.Module]] = {}


class _Running(threading.local):
    """What is going on in this thread."""

    busy = False
    owner: nn.Module | None = None


_running = _Running()


@contextmanager
def busy() -> Iterator[None]:
    """Let products pass: what one owner runs is not another's as well."""
    before, _running.busy = _running.busy, True
    try:
        yield
    finally:
        _running.busy = before


class ProductMode(TorchFunctionMode):
    """Show the products that one module's code computes to its points.

    Args:
        owner: Module with a child ``products``.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a call of torch; a product by way of its point."""
        if func not in CALLS or _running.busy:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        site = find_site(sys._getframe(1), owner=self._owner)
        if site is None or site.module is not self._owner:
            return func(*args, **kwargs)
        products = self._owner._modules[CHILD]
        assert products is not None
        # As ``busy`` does, in half of the time.
        _running.busy = True
        try:
            return products(func, args, kwargs, site)
        finally:
            _running.busy = False


class _Owner:
    """Mixin of the classes that :func:`own` makes."""

    float_class: type[nn.Module]
    product_methods: tuple[str, ...]


def own(module: nn.Module, method: str, *, scheme: Scheme) -> QuantProducts:
    """Let a module enter the mode in one of its methods, in place.

    Its class becomes a subclass of its class, with a child ``products``.

    >>> import torch
    >>> class Gram(nn.Module):
    ...     def forward(self, x):
    ...         return x @ x.T
    >>> gram = Gram()
    >>> products = own(gram, 'forward', scheme=Scheme())
    >>> isinstance(gram, Gram), gram.products is products
    (True, True)

    Args:
        module: Any module; calling it again adds a method.
        method: Name of a method of its class.
        scheme: Recipes of the quantizers.

    Returns:
        The child.

    Raises:
        ValueError: If the class has no such method, or the module cannot
            have such a child.
    """
    cls = type(module)
    fault = owner_fault(module, method)
    if fault:
        raise ValueError(f'{cls.__name__}: {fault}')
    methods = {method}
    if isinstance(module, _Owner):
        methods |= {*module.product_methods}
        cls = module.float_class
    else:
        module.add_module(CHILD, QuantProducts(scheme))
    module.__class__ = owner_class(cls, methods)
    products = module._modules[CHILD]
    assert isinstance(products, QuantProducts)
    return products


def owner_fault(module: nn.Module, method: str) -> str:
    """Return why a module cannot own products, '' if it can.

    Args:
        module: Any module.
        method: Name of the method that computes them.
    """
    if not is_method(type(module), method) or method.startswith('__'):
        return f'{method} is not one of its methods'
    if method in vars(module):
        return f'{method} is replaced on this one instance'
    if isinstance(module, _Owner):
        return ''
    if isinstance(module, nn.ModuleDict):
        return 'a child of its own would be an entry'
    if hasattr(module, CHILD):
        return f'it has an attribute {CHILD} already'
    return ''


def owner_class(
    cls: type[nn.Module], methods: Collection[str]
) -> type[nn.Module]:
    """Return the subclass that enters the mode in some methods.

    Each pair has one class, whose instances can be copied and pickled.

    Args:
        cls: Class of the float module.
        methods: Names of its methods.
    """
    key = cls, tuple(sorted(methods))
    if key in _MADE:
        return _MADE[key]
    body: dict[str, Any] = {
        '__module__': cls.__module__,
        '__qualname__': cls.__qualname__,
        '__doc__': cls.__doc__,
        'float_class': cls,
        'product_methods': key[1],
        '__reduce_ex__': lambda self, protocol: (_new, key, self.__dict__),
    }
    body |= {
        name: _entering(inspect.getattr_static(cls, name)) for name in key[1]
    }
    if issubclass(cls, nn.Sequential | nn.ModuleList):
        body |= {'__iter__': _iterate, '__len__': _length}
    made = types.new_class(
        cls.__name__,
        (_Owner, cls),
        exec_body=lambda namespace: namespace.update(body),
    )
    _MADE[key] = made
    return made


def _new(cls: type[nn.Module], methods: tuple[str, ...]) -> object:
    return object.__new__(owner_class(cls, methods))


def _entering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs in the mode of its module."""

    @functools.wraps(method)
    def entering(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        products = self._modules[CHILD]
        assert isinstance(products, QuantProducts)
        if _running.owner is self or products.idle:
            return method(self, *args, **kwargs)
        return _seeing(method, self, args, kwargs)

    return entering


def _seeing(
    method: Callable[..., Any],
    owner: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a method in the mode of its module."""
    outer, _running.owner = _running.owner, owner
    try:
        with ProductMode(owner):
            return method(owner, *args, **kwargs)
    finally:
        _running.owner = outer


ENTRIES.add(_seeing.__code__)


def _iterate(self: nn.Module) -> Iterator[nn.Module | None]:
    """Iterate as the float container does."""
    return iter([m for n, m in self._modules.items() if n != CHILD])


def _length(self: nn.Module) -> int:
    return len(self._modules) - 1


def is_owner(module: nn.Module) -> bool:
    """Whether a module has points of its own."""
    return isinstance(module, _Owner)


def owned_methods(module: nn.Module) -> tuple[str, ...]:
    """Return the methods in which a module enters the mode."""
    return module.product_methods if isinstance(module, _Owner) else ()


def all_products(model: nn.Module) -> list[tuple[str, QuantProducts]]:
    """Return (qualified name, points) of all owners in a model."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, QuantProducts)
    ]


@contextmanager
def learning(model: nn.Module, *, observing: bool) -> Iterator[None]:
    """Give products that are met at new places their quantizers.

    Args:
        model: Model with owners of products.
        observing: Whether these quantizers observe at once.
    """
    found = [products for _, products in all_products(model)]
    how = Learning(observing, counterpart_parameters(model))
    for products in found:
        products.learning = how
    try:
        yield
    finally:
        for products in found:
            products.learning = None
            for child in products.children():
                if isinstance(child, Quantizer):
                    child.observing = False


def counterpart_parameters(model: nn.Module) -> frozenset[int]:
    """Return the ids of the weights that counterparts quantize."""
    return frozenset(
        id(module._parameters[parameter])
        for module in model.modules()
        if isinstance(module, QuantModule)
        and not isinstance(module, QuantProducts)
        for parameter, slot in module.active_slots()
        if getattr(module, slot) is not None
    )
