"""Who enters the mode, and what the module is afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taskptq.core import QuantizerConfig
from taskptq.modules import QuantLinear
from taskptq.modules.base import Scheme
from taskptq.modules.product_mode import (
    CHILD,
    counterpart_parameters,
    is_owner,
    learning,
    own,
    owned_methods,
    owner_class,
    owner_fault,
)

SCHEME = Scheme(weight=QuantizerConfig(), activation=QuantizerConfig())


class Gram(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.t()

    def other(self, x: Tensor) -> Tensor:
        return x.t() @ x


def test_an_owner_is_still_what_it_was() -> None:
    module = Gram()
    products = own(module, 'forward', scheme=SCHEME)
    assert isinstance(module, Gram)
    assert type(module).__name__ == 'Gram'
    assert is_owner(module)
    assert dict(module.named_modules())[CHILD] is products


def test_methods_add_up_and_share_points() -> None:
    module = Gram()
    first = own(module, 'forward', scheme=SCHEME)
    assert own(module, 'other', scheme=SCHEME) is first
    assert owned_methods(module) == ('forward', 'other')
    assert owned_methods(Gram()) == ()
    with learning(module, observing=False):
        module(torch.ones(2, 3))
        module.other(torch.ones(2, 3))
    assert len(first.all_points()) == 2


def test_each_class_is_made_once() -> None:
    pair = owner_class(Gram, ['other', 'forward'])
    assert owner_class(Gram, ['forward', 'other']) is pair


def test_what_cannot_own_says_why() -> None:
    module = Gram()
    assert owner_fault(module, 'forward') == ''
    assert 'not one of its methods' in owner_fault(module, 'nothing')
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert 'replaced' in owner_fault(module, 'forward')
    assert 'entry' in owner_fault(nn.ModuleDict(), 'forward')
    taken = Gram()
    taken.products = None
    with pytest.raises(ValueError, match='Gram: it has an attribute products'):
        own(taken, 'forward', scheme=SCHEME)


def test_containers_iterate_over_their_own_children() -> None:
    class Stack(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ x.t()

    module = Stack(nn.Identity(), nn.ReLU())
    own(module, 'forward', scheme=SCHEME)
    with learning(module, observing=False):
        assert module(torch.ones(2, 3)).shape == (2, 2)
    assert len(module) == 2
    assert isinstance(module[-1], nn.ReLU)


def test_learning_ends() -> None:
    module = Gram()
    products = own(module, 'forward', scheme=SCHEME)
    with learning(module, observing=True):
        module(torch.ones(2, 3))
    module.other(torch.ones(2, 3))
    assert products.learning is None
    assert len(products.all_points()) == 1
    assert not any(child.observing for child in products.children())


def test_weights_of_counterparts_are_theirs() -> None:
    layer = QuantLinear.from_float(nn.Linear(2, 2), scheme=SCHEME)
    assert counterpart_parameters(nn.Sequential(layer)) == {id(layer.weight)}


class Nested(nn.Module):
    """Multiplies, by itself and by another of its class, called directly."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x)

    def work(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, Nested):
            x = self.inner.work(x)
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        return x @ x


@pytest.mark.parametrize('inner_owns', [True, False])
@pytest.mark.parametrize('inner_idle', [True, False])
@pytest.mark.parametrize('repeats', [1, 3])
def test_an_owner_sees_its_own_products_alone(
    inner_owns: bool, inner_idle: bool, repeats: int
) -> None:
    inner = Nested()
    outer = Nested(inner)
    owners = [outer, inner] if inner_owns else [outer]
    found = [own(module, 'work', scheme=SCHEME) for module in owners]
    x = torch.eye(3)
    with learning(outer, observing=False):
        outer(x)
    assert [len(products.all_points()) for products in found] == [1] * len(
        found
    )
    seen: list[nn.Module] = []
    for products in found:
        products.register_forward_pre_hook(lambda m, _: seen.append(m))
        # Only what is settled, with its quantizers off, may be idle.
        products.settled = False
    if inner_owns:
        found[1].settled = inner_idle
    for _ in range(repeats):
        outer(x)
        # The same functions, from another one of the class.
        Nested(inner)(x)
    both = [found[1]] if inner_owns and not inner_idle else []
    assert seen == [*both, found[0], *both] * repeats
