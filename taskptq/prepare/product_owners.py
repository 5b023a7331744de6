"""Find the modules whose own code multiplies, and give them points."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_hooks
from torch.overrides import TorchFunctionMode

from taskptq.core import Observer, Quantizer
from taskptq.core.distributed import gathered
from taskptq.hosts.class_lookup import layer_patterns
from taskptq.hosts.registry import KEPT_FLOAT, OUTPUT_LAYERS, dotted
from taskptq.modules.base import QuantModule, Scheme
from taskptq.modules.call_sites import Site, find_site
from taskptq.modules.product_calls import CALLS
from taskptq.modules.product_mode import (
    CHILD,
    all_products,
    counterpart_parameters,
    is_owner,
    own,
    owned_methods,
    owner_fault,
)
from taskptq.modules.products import Learning, Point, QuantProducts
from taskptq.prepare.patterns import matches
from taskptq.prepare.product_source import product_methods
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.swap import is_listed
from taskptq.prepare.tree import is_scripted, open_modules

logger = logging.getLogger('taskptq')


@dataclass(frozen=True)
class Owners:
    """Which modules may own products, and with which recipes.

    Args:
        model: Swapped model.
        qconfig: Recipe.
        modules: Qualified name -> module that is in no counterpart.
        edges: Patterns of edge layers, see ``layer_patterns``.
    """

    model: nn.Module
    qconfig: QConfig
    modules: Mapping[str, nn.Module]
    edges: list[tuple[str, str]]

    @classmethod
    def of(
        cls, model: nn.Module, qconfig: QConfig, *, kept: Collection[str] = ()
    ) -> Owners:
        """Look at a swapped model.

        Args:
            model: The model.
            qconfig: Recipe.
            kept: Names of modules that may not own any.
        """
        edges = layer_patterns(model, OUTPUT_LAYERS)
        edges += [('', pattern) for pattern in qconfig.edges]
        modules = {n: m for n, m in _outside(model) if n not in kept}
        return cls(model, qconfig, modules, edges)

    def scheme(self, name: str) -> Scheme | None:
        """Return the recipes of the products of a module; None: float.

        A layer goes by its own name, all else by that of its points.
        """
        module = self.modules[name]
        points = f'{name}.{CHILD}'.lstrip('.')
        if _float_by_design(module) or any(
            matches(each, pattern)
            for each in (name, points)
            for pattern in self.qconfig.keep_float
        ):
            return None
        edge = any(is_listed(each, self.edges) for each in (name, points))
        found = self.qconfig.scheme(
            name if _is_layer(module) else points, edge=edge
        )
        return found if any(vars(found).values()) else None


@contextmanager
def finding_owners(
    model: nn.Module, qconfig: QConfig, *, kept: Collection[str] = ()
) -> Iterator[None]:
    """Give points to the modules that are seen to multiply, in place.

    Modules that nothing inside calls are judged by their code at the end.

    Args:
        model: Swapped model in eval mode.
        qconfig: Recipe.
        kept: Names of layers that stay float by another decision.
    """
    if not qconfig.with_products:
        yield
        return
    owners = Owners.of(model, qconfig, kept=kept)
    called: set[int] = set()
    with _Finder(owners).active(), _called(called):
        yield
    for name, module in owners.modules.items():
        if id(module) not in called:
            for method in product_methods(_plain(module)):
                _make_owner(owners, name, method)
    _share_owners(owners)


def restore_owners(
    model: nn.Module,
    qconfig: QConfig,
    recorded: tuple[Mapping[str, Any], ...],
) -> None:
    """Give points to modules as a file records them, in place.

    Args:
        model: Swapped model.
        qconfig: Recipe.
        recorded: From :func:`record_owners`.

    Raises:
        ValueError: Naming the module or weight that the model has not.
    """
    owners = Owners.of(model, qconfig)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for entry in recorded:
        name = entry['module']
        scheme = owners.scheme(name) if name in owners.modules else None
        if scheme is None:
            raise _misfit(f'products of {name!r}')
        for method in entry['methods']:
            try:
                own(owners.modules[name], method, scheme=scheme)
            except ValueError as error:
                raise _misfit(f'products of {name!r} ({error})') from error
        products = owners.modules[name]._modules[CHILD]
        assert isinstance(products, QuantProducts)
        products.settled = True
        for plain in entry['points']:
            _restore_point(products, plain, parameters)


def _restore_point(
    products: QuantProducts,
    plain: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    point = Point(
        plain['name'], plain['place'], tuple(plain['roles']), plain['axis']
    )
    weight = parameters.get(plain['weight'])
    if bool(point.weight) != (weight is not None):
        raise _misfit(f'the weight {plain["weight"]!r} of a product')
    if (
        weight is not None
        and point.axis is not None
        and (point.axis >= weight.dim())
    ):
        raise _misfit(f'axis {point.axis} of the weight {plain["weight"]!r}')
    products.add(point, weight)


def _misfit(text: str) -> ValueError:
    return ValueError(
        f'the recorded decisions expect {text}, which this model does not '
        'fit: they were made for another one'
    )


def record_owners(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the owners of products and their points, in plain types."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, QuantProducts):
            for key, parameter in module._parameters.items():
                path = f'{name}.{key}'.lstrip('.')
                names.setdefault(id(parameter), path)
    modules = dict(model.named_modules())
    recorded = []
    for path, products in all_products(model):
        name = path.rpartition('.')[0]
        points = [
            {
                'name': point.name,
                'place': point.place,
                'roles': list(point.roles),
                'axis': point.axis,
                'weight': names[id(getattr(products, point.weight))]
                if point.weight
                else '',
            }
            for point in products.all_points()
        ]
        if points:
            methods = list(owned_methods(modules[name]))
            recorded.append(
                {'module': name, 'methods': methods, 'points': points}
            )
    return tuple(recorded)


class _Finder(TorchFunctionMode):
    """Make an owner of every module that is seen to multiply."""

    def __init__(self, owners: Owners) -> None:
        super().__init__()
        self._owners = owners
        self._names = {id(m): name for name, m in owners.modules.items()}
        self._how = Learning(False, counterpart_parameters(owners.model))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch the calls inside."""
        try:
            with self:
                yield
        finally:
            for _, products in all_products(self._owners.model):
                products.learning = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a call of torch; note who multiplies."""
        kwargs = kwargs or {}
        if func in CALLS:
            site = find_site(sys._getframe(1))
            name = None if site is None else self._names.get(id(site.module))
            if site is not None and name is not None:
                self._meet(name, site, func, args, kwargs)
        return func(*args, **kwargs)

    def _meet(
        self, name: str, site: Site, func: Any, args: Any, kwargs: Any
    ) -> None:
        call = CALLS[func]
        operands = call.operands(args, kwargs)
        if not operands or not all(x.numel() for x in operands):
            return
        products = _make_owner(self._owners, name, site.method)
        if products is not None:
            products.learning = self._how
            products.meet(call, args, operands, site)


def _make_owner(
    owners: Owners, name: str, method: str
) -> QuantProducts | None:
    """Make one module an owner; None if it has to stay float."""
    module = owners.modules[name]
    if method in owned_methods(module):
        found = module._modules[CHILD]
        assert isinstance(found, QuantProducts)
        return found
    scheme = owners.scheme(name)
    if scheme is None:
        return None
    fault = owner_fault(module, method)
    if fault:
        logger.warning('products of %s stay float: %s', name, fault)
        return None
    return own(module, method, scheme=scheme)


def _share_owners(owners: Owners) -> None:
    """Make the owners of all ranks owners on each."""
    own_ones = {
        name: owned_methods(module)
        for name, module in owners.modules.items()
        if is_owner(module)
    }
    for found in gathered(own_ones):
        for name, methods in found.items():
            for method in methods:
                _make_owner(owners, name, method)


@contextmanager
def _called(ids: set[int]) -> Iterator[None]:
    """Note the ids of the modules that are called."""
    # A global hook: scripted modules refuse hooks of their own.
    handle = torch_hooks.register_module_forward_pre_hook(
        lambda module, args: ids.add(id(module))
    )
    try:
        yield
    finally:
        handle.remove()


def _outside(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are in no counterpart."""
    inside: list[str] = []
    for name, module in open_modules(model):
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, QuantModule):
            inside.append(f'{name}.')
        elif not is_scripted(module) and not isinstance(
            module, Quantizer | Observer
        ):
            yield name, module


def _plain(module: nn.Module) -> Any:
    cls: type[nn.Module] = getattr(module, 'float_class', type(module))
    return cls


def _float_by_design(module: nn.Module) -> bool:
    return dotted(_plain(module)) in KEPT_FLOAT


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has a weight of its own."""
    own_ones = module._parameters.values()
    return any(p is not None and p.dim() >= 2 for p in own_ones)
