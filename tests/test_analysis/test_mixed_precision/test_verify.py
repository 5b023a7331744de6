"""The measured loss is that of the quantized outputs."""

import pytest
import torch

from taskptq.analysis.mixed_precision.verify import (
    Reference,
    disagreement_allowed,
    loss_allowed,
)
from taskptq.core.quantizers import AffineQuantizer
from taskptq.core.spec import QuantSpec


class Net(torch.nn.Module):
    """Its outputs are its quantized inputs."""

    def __init__(self):
        super().__init__()
        self.input_quantizer = AffineQuantizer(QuantSpec(num_bits=2))
        self.input_quantizer.set_bounds(signed=False)
        self.input_quantizer.set_range(torch.zeros(1), torch.full((1,), 3.0))

    def forward(self, x):
        return self.input_quantizer(x)


class Adapter:
    """All values of one output matter alike."""

    def forward_heads(self, model, batch):
        return {'out': model(batch)}

    def output_weights(self, heads):
        return {'out': torch.ones(())}


class Comparing(Adapter):
    """A share of each image's predictions changes, whatever the outputs."""

    def __init__(self, share):
        self.share = share
        self.forward_heads = lambda model, batch: {'out': model(batch[0])}

    def disagreement(self, target, quant, metas):
        assert target['out'].shape == quant['out'].shape
        return [self.share for _ in metas]


class Batch(dict):
    """Collated images with metainfo."""

    def __init__(self, x, metas):
        super().__init__(inputs=x, data_samples=metas)

    def __getitem__(self, key):
        return super().__getitem__('inputs' if key == 0 else key)


def measured_with(share, *, metas):
    x = torch.tensor([[0.0], [1.0], [2.01], [3.0]])
    model = Net()
    reference = Reference(model, [Batch(x, metas)], adapter=Comparing(share))
    return reference.measure(model)


def test_the_stricter_of_outputs_and_predictions_counts():
    metas = [dict(img_shape=(8, 8))] * 4
    small = measured_with(0.0, metas=metas)
    assert 0 < small.loss < loss_allowed(0.99)
    assert small.disagreement == 0
    allowed = disagreement_allowed(0.99)
    just = measured_with(allowed, metas=metas)
    assert just.loss == pytest.approx(loss_allowed(0.99))
    many = measured_with(4 * allowed, metas=metas)
    assert many.disagreement == pytest.approx(4 * allowed)
    assert many.loss == pytest.approx(4 * loss_allowed(0.99))


def test_predictions_without_metainfo_are_not_compared():
    found = measured_with(1.0, metas=[{}] * 4)
    assert found.disagreement is None
    assert found.loss < loss_allowed(0.99)


def test_loss_is_relative_to_the_variance():
    x = torch.tensor([[0.0], [1.0], [2.4], [3.0]])
    model = Net()
    reference = Reference(model, [x], adapter=Adapter())
    measured = reference.measure(model)
    assert measured.loss == pytest.approx(
        0.4**2 / float((x - x.mean()).square().sum())
    )
    assert torch.equal(measured.heads[0]['out'], x.round())
    assert not model.input_quantizer.enabled


def test_weights_may_be_left_out():
    x = torch.rand(4, 1)
    model = Net()
    model.weight_quantizer = model.input_quantizer
    del model.input_quantizer
    model.forward = lambda x: model.weight_quantizer(x)
    reference = Reference(model, [x], adapter=Adapter())
    assert reference.measure(model).loss > 0
    assert reference.measure(model, weights=False).loss == 0


def test_an_output_without_a_signal_is_refused():
    with pytest.raises(ValueError, match='no output of the float model'):
        Reference(Net(), [torch.ones(4, 1)], adapter=Adapter())


def test_more_may_be_lost_where_less_is_to_be_kept():
    assert loss_allowed(0.9) == pytest.approx(10 * loss_allowed(0.99))
