import pytest
from torch import nn

from taskptq.analysis.sensitivity.roles import owner_of, point_of, role_of

LAYERS = {
    'depthwise': nn.Conv2d(8, 8, 3, groups=8),
    'grouped': nn.Conv2d(8, 8, 3, groups=2),
    'point': nn.Conv2d(8, 4, 1),
    'spatial': nn.Conv2d(8, 4, (1, 3)),
    'linear': nn.Linear(3, 3),
}


@pytest.mark.parametrize(
    ('layer', 'expected'),
    [
        ('depthwise', 'depthwise input'),
        ('grouped', 'conv input'),
        ('point', 'pointwise input'),
        ('spatial', 'conv input'),
        ('linear', 'linear input'),
    ],
)
def test_input_roles_follow_the_kernel(layer, expected):
    name = 'a.b.input_quantizer'
    found = role_of(name, LAYERS[layer], is_first=False, is_head=False)
    assert found == expected


@pytest.mark.parametrize(
    ('quantizer', 'point', 'role'),
    [
        ('weight', 'weight', 'weight'),
        ('in_proj_weight', 'weight', 'weight'),
        ('conv2d_0_weight', 'weight', 'weight'),
        ('query', 'query', 'attention operand'),
        ('key_position', 'key', 'attention operand'),
        ('key_input', 'activation', 'linear input'),
        ('position_input', 'activation', 'linear input'),
        ('value', 'value', 'attention operand'),
        ('softmax', 'softmax', 'softmax'),
        ('matmul_0_first', 'attention', 'attention operand'),
        ('matmul_0_query', 'attention', 'attention operand'),
        ('matmul_0_softmax', 'softmax', 'softmax'),
        ('matmul_0_input', 'activation', 'linear input'),
        ('output', 'activation', 'output'),
    ],
)
def test_points_and_roles_of_names(quantizer, point, role):
    name = f'layers.0.{quantizer}_quantizer'
    assert owner_of(name) == 'layers.0'
    assert point_of(name) == point
    found = role_of(name, LAYERS['linear'], is_first=False, is_head=False)
    assert found == role


def test_edges_precede_kernels():
    name, layer = 'a.input_quantizer', LAYERS['depthwise']
    assert role_of(name, layer, is_first=True, is_head=True) == 'first input'
    assert role_of(name, layer, is_first=False, is_head=True) == 'head input'
    weight = role_of('a.weight_quantizer', layer, is_first=True, is_head=False)
    assert weight == 'depthwise weight'
