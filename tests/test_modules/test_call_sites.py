"""Whose code makes a call, and from where."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.swin_transformer import ShiftedWindowAttention

from taskptq.modules.call_sites import Site, begins_call, find_site, is_method

SEEN: list[Site | None] = []


def product(x: Tensor) -> Tensor:
    SEEN.append(find_site(sys._getframe(1)))
    return x


def twice(x: Tensor) -> Tensor:
    return product(x) + product(x)


def decorated(method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


class Base(nn.Module):
    def multiply(self, x: Tensor) -> Tensor:
        return product(x)


class Part(Base):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = product(x)
        x = sum(product(y) for y in x)
        return self.inner(x) + self.multiply(x)

    @decorated
    def inner(self, x: Tensor) -> Tensor:
        return twice(x)

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(x)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def sites() -> list[Site]:
    SEEN.clear()
    model = Whole()
    model(torch.ones(2, 3))
    found = [site for site in SEEN if site is not None]
    assert len(found) == len(SEEN) == 8
    assert all(site.module is model.part for site in found)
    return found


def test_a_loop_has_one_place() -> None:
    paths = [site.path for site in sites()[:3]]
    assert set(paths) == {'forward+2.0'}


def test_a_generator_counts_to_its_function() -> None:
    paths = {site.path for site in sites()[3:5]}
    assert len(paths) == 1
    assert paths.pop().startswith('forward+3.')


def test_calls_on_one_line_differ_and_helpers_are_part_of_the_path() -> None:
    first, second = sites()[5:7]
    assert first.method == second.method == 'inner'
    assert first.path == 'inner+2.0>twice+1.0'
    assert second.path == 'inner+2.0>twice+1.1'


def test_method_that_super_calls_past_an_override_is_entered_outside() -> None:
    last = sites()[7]
    assert last.method == 'multiply'
    assert last.path == 'forward+4.1>multiply+1.1>multiply+1.0'


def test_places_are_the_same_in_the_next_run() -> None:
    assert [s.path for s in sites()] == [s.path for s in sites()]


def test_function_without_a_module_has_no_site() -> None:
    SEEN.clear()
    twice(torch.ones(1))
    assert SEEN == [None, None]


def test_layers_of_torch_go_by_name() -> None:
    class Seen(nn.Conv1d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return product(super()._conv_forward(*args))

    SEEN.clear()
    Seen(2, 2, 1)(torch.ones(1, 2, 3))
    (site,) = SEEN
    assert site is not None
    assert site.path == 'forward>_conv_forward+1.2'


def test_packages_named_like_torch_have_places() -> None:
    """Two calls of one function of torchvision are two places."""
    found: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is nn.functional.linear:
                site = find_site(sys._getframe(1))
                assert site is not None
                found.append(site.path)
            return func(*args, **(kwargs or {}))

    module = ShiftedWindowAttention(8, [2, 2], [0, 0], 2)
    with Watch():
        module(torch.ones(1, 4, 4, 8))
    assert len(set(found)) == 2
    assert all('>shifted_window_attention+' in path for path in found)


def test_only_methods_written_in_python_are_methods() -> None:
    assert is_method(Part, 'forward')
    assert not is_method(Part, 'training')
    assert not is_method(Part, 'no such')


def test_a_traced_call_and_a_wrapped_forward_have_the_usual_place() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return product(x)

    layer, x = Layer(), torch.ones(1)
    forward = layer.forward

    def passing(*args: Any) -> Any:
        return forward(*args)

    SEEN.clear()
    layer(x)
    torch.jit.trace(layer, x, check_trace=False)
    begins_call(passing)
    layer.forward = passing  # type: ignore[method-assign]
    layer(x)
    first, *others = SEEN
    assert first is not None
    assert others == [first] * len(others)
    assert len(others) == 2
