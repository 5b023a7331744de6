"""The loss over the whole set: see also test_unit_fit.py."""

from taskptq.reconstruction import MSEReconLoss
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.set_loss import set_loss


def test_a_float_unit_has_no_loss(quantized, plan, random_images):
    batches = random_images()
    model = quantized('conv', batches, bits=3)
    capturer = plan(model, batches)
    capturer.capture_float()
    data = UnitData(capturer, 0, cache=capturer.cache, rows_per_image=8)
    data.compute('float', keep=None)
    unit = capturer.plans[0].unit
    before = set_loss(unit, data, MSEReconLoss())
    for _, layer in unit.layers():
        layer.weight_quantizer = layer.input_quantizer = None
    after = set_loss(unit, data, MSEReconLoss())
    assert after < 1e-6 < before
