"""Plots are SVG of the page's colors, and names stay text."""

import xml.etree.ElementTree as ET

import pytest

from taskptq.analysis.page.plots import VARIABLES, plot_noise, plot_tensor

HOSTILE = '"><script>$\\frac{x$</script>'


def layers(part='backbone'):
    return [
        dict(own_db=30.0 - i, output_db=None if i == 3 else 20.0, part=part)
        for i in range(6)
    ]


def tensor(**changes):
    shape = dict(
        name='conv.input_quantizer',
        counts=[1.0, 5.0, 0.0, 2.0],
        low=-1.0,
        high=3.0,
        quant_min=0,
        quant_max=3,
        least=-0.2,
        greatest=9.0,
    )
    return plot_tensor({**shape, **changes})


@pytest.mark.parametrize(
    'svg', [plot_noise(layers()), tensor(), tensor(quant_max=255, high=300.0)]
)
def test_plots_are_elements_in_the_colors_of_the_page(svg):
    root = ET.fromstring(svg)
    assert root.tag.endswith('svg')
    assert root.get('role') == 'img'
    assert 'width' not in root.attrib
    assert 'var(--ink)' in svg
    assert not any(color in svg for color in VARIABLES)
    assert '<style' not in svg
    assert 'http' not in svg.replace('http://www.w3.org/', '')


def test_names_are_escaped_and_no_formulas():
    for svg in (plot_noise(layers(HOSTILE)), tensor(name=HOSTILE)):
        assert '<script' not in svg
        ET.fromstring(svg)


def test_values_beyond_the_plot_are_named():
    assert 'to 9 →' in tensor()
    assert '→' not in tensor(greatest=2.0)


def test_nothing_to_plot():
    ET.fromstring(plot_noise([]))
