import pytest
import torch
from torch import nn

from taskptq.engine.network_parts import (
    NetworkParts,
    guard_rest,
    parts_of,
    replace_forward,
    with_parameters,
)
from taskptq.registry import NETWORK_PARTS


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(()))
        self.first = nn.Linear(2, 2)
        self.act = nn.ReLU()
        self.rest = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])

    def forward(self, x):
        return self.rest[0](self.act(self.first(x))) * self.own


class Derived(Model):
    pass


def test_an_unknown_model_is_refused():
    parts = parts_of(Model())
    assert type(parts) is NetworkParts
    for call in (lambda: parts.parts({}), lambda: parts.install({})):
        with pytest.raises(ValueError, match='Model has no known network'):
            call()
    assert parts.decoding() is None


def test_parts_are_found_along_the_bases(registry_guard):
    @NETWORK_PARTS.register_module(name=f'{__name__}.Model')
    class Own(NetworkParts):
        pass

    assert type(parts_of(Derived())) is Own
    del NETWORK_PARTS.module_dict[f'{__name__}.Model']


def test_names_of_parts_are_compared():
    parts = parts_of(Model())
    parts.check_names({'network': None}, ['network'])
    with pytest.raises(ValueError, match=r"\['a'\], but Model has \['b'\]"):
        parts.check_names({'a': None}, ['b'])


def test_an_overridden_method_is_refused():
    class Other(Model):
        def forward(self, x):
            return x

    parts_of(Derived()).refuse_overridden(Model, 'forward')
    with pytest.raises(ValueError, match=r'Other has a forward\(\)'):
        parts_of(Other()).refuse_overridden(Model, 'forward')


def test_a_layer_that_was_not_replaced_refuses_to_run():
    model = Model()
    replace_forward(model.first, lambda x: x + 1)
    guard_rest(model)
    assert torch.equal(model.first(torch.zeros(2)), torch.ones(2))
    with pytest.raises(ValueError, match=r'rest\.0 \(Linear\) runs outside'):
        model(torch.zeros(1, 2))


def test_layers_with_weights_and_those_of_lists_are_found():
    layers = dict(with_parameters(Model(), prefix='m'))
    assert list(layers) == ['m.first', 'm.rest.0']


def test_layers_of_an_extractor_of_rois_are_found_one_by_one():
    extractor = nn.Module()
    extractor.roi_layers = nn.ModuleList([nn.Identity()])
    extractor.before = nn.Conv2d(2, 2, 1)
    head = nn.Module()
    head.extractor = extractor
    layers = dict(with_parameters(head, prefix='h'))
    assert layers == {'h.extractor.before': extractor.before}
