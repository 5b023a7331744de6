"""Points that calibration finds: make them the same on all ranks."""

from __future__ import annotations

from typing import Any

from torch import nn

from taskptq.core.distributed import gathered, num_ranks
from taskptq.modules.product_mode import all_products
from taskptq.modules.products import Point, QuantProducts

Found = tuple[str, tuple[str, ...], int | None, str]


def settle_products(model: nn.Module) -> None:
    """End the search for products: a new one is an error from now on.

    Each rank gets the points that any of them has found, in one order, so
    that their statistics can be reduced.

    Args:
        model: Model whose owners of products have seen this rank's data.
    """
    device = next((p.device for p in model.parameters()), None)
    for path, products in all_products(model):
        if num_ranks() > 1:
            _share(model, path, products)
        # Observers that have seen nothing are where they were made.
        products.to(device)
        products.settled = True


def _share(model: nn.Module, path: str, products: QuantProducts) -> None:
    names = {
        id(parameter): name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(f'{path}.')
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {
        _found(products, point, names): point
        for point in products.all_points()
    }
    union = sorted(
        {found for rank in gathered(list(own)) for found in rank}, key=repr
    )
    if union == list(own):
        return
    former = {
        found: {
            role: getattr(products, point.quantizer(role))
            for role in point.roles
        }
        for found, point in own.items()
    }
    products.clear()
    for number, found in enumerate(union):
        place, roles, axis, weight = found
        call = place.split(' ')[1]
        point = Point(f'{call}_{number}', place, roles, axis)
        products.add(point, parameters.get(weight))
        for role, quantizer in former.get(found, {}).items():
            setattr(products, point.quantizer(role), quantizer)


def _found(
    products: QuantProducts, point: Point, names: dict[int, str]
) -> Found:
    weight: Any = getattr(products, point.weight) if point.weight else None
    name = '' if weight is None else names[id(weight)]
    return point.place, point.roles, point.axis, name
