import torch
from torch import nn

from taskptq.engine.module_calls import captured_calls, tensors_of


class Scaled(nn.Module):
    def forward(self, x, others=None, *, factor=1):
        return x * factor


def calls_of(*given):
    module = Scaled()
    found = captured_calls(
        {'m': module},
        lambda: [module(*args, **kwargs) for args, kwargs in given],
    )
    assert 'forward' not in vars(module)
    return found


def test_the_first_call_is_kept_with_places_for_its_tensors():
    x, y = torch.ones(2), torch.zeros(3)
    call = calls_of(((x,), {'others': {'y': [y, None]}, 'factor': 2}))['m']
    assert [id(z) for z in call.tensors] == [id(x), id(y)]
    args, kwargs = call.arguments((y, x))
    assert args[0] is y
    assert args[1]['y'][0] is x
    assert args[1]['y'][1] is None
    assert kwargs == {'factor': 2}
    assert not call.differs
    assert call.unknown is None


def test_a_call_by_name_is_that_by_place():
    x = torch.ones(2)
    call = calls_of(((x,), {}), ((), {'x': x}))['m']
    assert not call.differs


def test_other_constants_are_another_way_to_call():
    x = torch.ones(2)
    assert calls_of(((x,), {}), ((x,), {'factor': 3}))['m'].differs


def test_calls_without_values_do_not_count():
    empty, x = torch.ones(0, 2), torch.ones(1, 2)
    assert calls_of(((empty,), {})) == {}
    assert calls_of(((empty,), {}), ((x,), {}))['m'].tensors[0] is x


def test_what_is_neither_tensor_nor_constant_is_named():
    x = torch.ones(2)
    assert calls_of(((x, nn.Identity()), {}))['m'].unknown == 'Identity'


def test_tensors_of_nested_values():
    x, y = torch.ones(2), torch.zeros(3)
    assert tensors_of([{'a': x}, 'b', (None, y)]) == (x, y)
