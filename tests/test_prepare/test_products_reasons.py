"""Why an operand is float: one reason for each product."""

from __future__ import annotations

import pytest

from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import trace_products
from taskptq.testing import tiny_batches, tiny_model


def forward(model, batch):
    return model(batch)


def prepared(model, batch, unreached='error', **settings):
    """Prepare and calibrate; returns the swap report as well."""
    model.eval().requires_grad_(False)
    report = prepare(model, QConfig.from_dict({'edge_bits': None} | settings))
    found = calibrate(model, [batch], forward=forward, unreached=unreached)
    return report, found


@pytest.mark.parametrize(
    'settings', [{'activation': False}, {'weight': False}]
)
def test_point_that_the_recipe_leaves_out_is_one_operand(settings):
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    prepared(model, x, **settings)
    report = trace_products(model, [x], forward=forward)
    assert report.one == report.total > 0
    word = 'input' if 'activation' in settings else 'weight'
    assert {p.reason for p in report.products} == {f'{word} is float'}


def test_kept_float_layer_has_no_quantized_operand():
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    prepared(model, x, keep_float=['head'])
    products = trace_products(model, [x], forward=forward)
    assert products.none == products.of_module('head')[0].none > 0
    assert products.one == 0
