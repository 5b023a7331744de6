import torch
from torch import nn
from wild_net import PlainAdapter, prepared

from taskptq.analysis.sensitivity.trace import trace_points, weights_of
from taskptq.prepare.products import trace_products
from taskptq.testing import tiny_batches, tiny_model


def facts_of(model, batch):
    return trace_points(model, batch, outputs=PlainAdapter().forward_heads)


def test_every_kind_of_layer(wild, batches):
    facts = facts_of(wild, batches[0])
    roles = {
        fact.layer: (fact.role, fact.producer)
        for fact in facts.values()
        if fact.point == 'activation'
    }
    assert roles == {
        'stem': ('first input', ''),
        'depthwise': ('depthwise input', 'ReLU'),
        'pointwise': ('pointwise input', 'SiLU'),
        'spatial': ('conv input', 'SiLU'),
        'head': ('head input', 'ReLU'),
    }
    assert facts['depthwise.weight_quantizer'].role == 'depthwise weight'


def test_costs_per_image(wild, batches):
    facts = facts_of(wild, batches[0])
    # 8 x 8 positions, 3 input channels, 3 x 3 kernels, 8 output channels.
    assert facts['stem.input_quantizer'].macs == 64 * 27 * 8
    assert facts['stem.weight_quantizer'].macs == 64 * 27 * 8
    assert facts['stem.input_quantizer'].elements == 3 * 64
    assert facts['stem.weight_quantizer'].elements == 8 * 27
    assert facts['depthwise.input_quantizer'].macs == 64 * 9 * 8


def test_macs_add_up_in_an_attention():
    batches = tiny_batches('transformer')
    model = prepared(tiny_model('transformer'), batches)
    facts = facts_of(model, batches[0])
    expected = trace_products(model, batches[:1], forward=lambda m, x: m(x))
    counted = {
        fact.name: fact.macs
        for fact in facts.values()
        if fact.point in ('weight', 'query', 'softmax')
    }
    assert sum(counted.values()) * len(batches[0]) == expected.total
    points = {fact.point for fact in facts.values()}
    assert points >= {'weight', 'activation', 'query', 'key', 'softmax'}


def test_a_tensor_with_two_readers(batches):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.left = nn.Conv2d(4, 4, 1)
            self.right = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = nn.functional.gelu(self.stem(x))
            return {'a': self.left(x), 'b': torch.cat([self.right(x), x], 1)}

    facts = facts_of(prepared(Branches(), batches), batches[0])
    assert facts['left.input_quantizer'].macs == 64 * 16
    assert facts['right.input_quantizer'].macs == 64 * 16 * 9
    assert facts['left.input_quantizer'].producer == 'GELU'
    # The stem reaches an output past both others.
    assert facts['right.input_quantizer'].role == 'head input'
    assert facts['stem.input_quantizer'].role == 'first input'


def test_weights_by_quantizer(wild):
    found = weights_of(wild)
    assert found['stem.weight_quantizer'] is wild.stem.weight
    assert len(found) == 5


def test_switches_are_restored(wild, batches):
    from wild_net import switches

    before = switches(wild)
    facts_of(wild, batches[0])
    assert switches(wild) == before
