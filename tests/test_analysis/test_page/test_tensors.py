"""Distributions over the codes of grids."""

import pytest
import torch

from taskptq.analysis.page.tensors import (
    TensorShape,
    _Histogram,
    activation_shapes,
    weight_shapes,
    worst,
)
from taskptq.core import AffineQuantizer, QuantSpec


def run(model, batch):
    return model(batch)


def histogram(values, *, num_bits=2, ch_axis=None, high=3.0):
    quantizer = AffineQuantizer(QuantSpec(num_bits=num_bits, ch_axis=ch_axis))
    quantizer.set_bounds(signed=False)
    low = torch.zeros(1 if ch_axis is None else values.shape[ch_axis])
    quantizer.set_range(low, torch.full_like(low, high))
    quantizer.enabled = True
    found = _Histogram('x', quantizer)
    found.add(values, noisy=quantizer(values))
    return found.shape()


def test_values_are_counted_by_code():
    shape = histogram(torch.tensor([0.0, 1.0, 1.0, 3.0]))
    assert (shape.quant_min, shape.quant_max, shape.scale) == (0, 3, 1.0)
    width = (shape.high - shape.low) / len(shape.counts)
    places = {
        round(shape.low + (index + 0.5) * width): count
        for index, count in enumerate(shape.counts)
        if count
    }
    assert places == {0: 1, 1: 2, 3: 1}
    assert (shape.least, shape.greatest, shape.clipped) == (0, 3, 0)


def test_what_lies_outside_is_clipped_and_reported():
    shape = histogram(torch.tensor([0.0, 3.0, 3.4, 30.0]))
    assert shape.clipped == 0.25
    assert shape.greatest == 30
    assert sum(shape.counts) == 3


def test_each_channel_has_its_own_scale():
    values = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    assert histogram(values, ch_axis=1).channels == 2


def test_activations_of_the_quantized_model(pair):
    _, model, batches = pair
    shapes = {
        shape.name: shape
        for shape in activation_shapes(model, batches, forward=run)
    }
    assert 'stem.input_quantizer' in shapes
    assert not any('weight' in name for name in shapes)
    assert all(shape.db > 5 for shape in shapes.values())
    total = sum(batch.numel() for batch in batches)
    first = shapes['stem.input_quantizer']
    assert sum(first.counts) == pytest.approx(total, rel=0.01)


def test_weights_on_the_grid_of_the_quantized_model(pair):
    twin, model, _ = pair
    shapes = {shape.name: shape for shape in weight_shapes(twin, model)}
    found = shapes['stem.weight_quantizer']
    assert sum(found.counts) == twin.stem.weight.numel()
    assert found.channels == len(twin.stem.weight)


def shape(name, db, counts=(1,)):
    return TensorShape(
        name=name,
        num_bits=8,
        quant_min=0,
        quant_max=255,
        scale=1.0,
        channels=1,
        counts=list(counts),
        db=db,
    )


def test_the_worst_come_first_and_once():
    shapes = [
        shape('a', 30.0, (1,)),
        shape('b', 10.0, (2,)),
        shape('same as b', 10.0, (2,)),
        shape('c', None, (3,)),
        shape('d', 20.0, (4,)),
    ]
    assert [one.name for one in worst(shapes, most=2)] == ['b', 'd']
