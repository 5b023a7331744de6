"""What names mean, and what is said about those that mean nothing."""

import pytest

from taskptq.core.settings import SettingError
from taskptq.recipes import RecipeName, parse, resolve
from tests.helpers.method_kinds import STEP_METHODS


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('w8a8', RecipeName(weight=8, activation=8)),
        ('w4a8_gptq', RecipeName(weight=4, activation=8, method='gptq')),
        (
            'w2a4-8_drd+relative-qat',
            RecipeName(
                weight=2, activation=4, attention=8, method='drd+relative-qat'
            ),
        ),
        (
            'lane_detection::w4a4_agq',
            RecipeName(
                weight=4, activation=4, method='agq', scope='lane_detection'
            ),
        ),
        (
            'w1a4',
            RecipeName(weight=1, activation=4, levels='binary'),
        ),
        (
            'w1.6a8_qdrop',
            RecipeName(
                weight=2, activation=8, method='qdrop', levels='ternary'
            ),
        ),
        (
            'w2a4-4_planes_gptq',
            RecipeName(
                weight=2,
                activation=4,
                attention=4,
                method='gptq',
                levels='two-plane',
            ),
        ),
        (
            'sparse70',
            RecipeName(weight=None, activation=None, sparsity={'rate': 0.7}),
        ),
        (
            'w4a8_gptq_sparse50-erk',
            RecipeName(
                weight=4,
                activation=8,
                method='gptq',
                sparsity={'rate': 0.5, 'allocation': 'erk'},
            ),
        ),
        (
            'sparse-trained_sparse2-4',
            RecipeName(
                weight=None,
                activation=None,
                method='sparse-trained',
                sparsity={'pattern': '2:4'},
            ),
        ),
    ],
)
def test_parts_of_a_name(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'qdrop',
            r"recipe='qdrop': give bits and a method, as in w8a8, .*"
            r'\(did you mean w4a4_qdrop\?\)',
        ),
        ('w44_gptg', r'did you mean w4a4_gptq\?'),
        ('w8a8-minmax', r'did you mean w8a8_minmax\?'),
        ('W8A8', r'did you mean w8a8\?'),
        ('int8', r'did you mean w8a8\?'),
        ('w4', r'did you mean w4a8\?'),
        ('w8', "recipe='w8': give bits and a method"),
        ('w8a8_', "recipe='w8a8_': give bits and a method"),
        (
            'w0a4_mse',
            "recipe='w0a4_mse': the bits of weight have to be 2 to 8, or 1, "
            '1.6',
        ),
        ('w4a17', 'the bits of activation have to be 1 to 16'),
        ('w4a4-17_drd', 'the bits of attention have to be 1 to 16'),
        ('w16a16', 'the bits of weight have to be 2 to 8'),
        ('w1.5a8', 'the bits of weight have to be 2 to 8, or 1, 1.6'),
        ('w3a8_planes', 'give weights 2 bits and no other form'),
        ('w1.6a8_planes', 'give weights 2 bits and no other form'),
        ('w1.6a8_size10x', 'give whole bits'),
        ('w04a4', 'the bits of weight have to be 2 to 8'),
        (
            'w4a4_qdorp',
            r"recipe='w4a4_qdorp': there is no method 'qdorp' "
            r'\(the nearest are qdrop, .*\); those of a project are known '
            r'once',
        ),
        ('w4a4_kl_fg', 'the nearest are kl-fg, '),
        ('w4a4__centering', 'there is no method'),
        ('w4a4_names', 'there is no method'),
        ('w4a4_../mse', 'there is no method'),
        (
            'nowhere::w4a4_mse',
            r"no recipes of 'nowhere' are known \(taskptq.*"
            'import the project first',
        ),
        ('w4a4\n', 'give bits and a method'),
        (None, 'recipe=None: give bits and a method'),
        ('foo_sparse70', "there is no method 'foo'"),
        ('w8_sparse70', "recipe='w8_sparse70': give bits and a method"),
        ('sparse100', "recipe='sparse100': give bits and a method"),
    ],
)
def test_what_is_no_recipe(name, message):
    with pytest.raises(SettingError, match=message):
        resolve(name)


def test_an_error_is_one_short_sentence():
    with pytest.raises(SettingError) as caught:
        resolve('w4a4_' + 'x' * 10000)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ('name', 'method', 'budget'),
    [
        ('w8a8', 'w8a8_mixed', 0.03),
        ('w8a16', 'w8a16_mixed', 0.03),
        ('w4a8', 'w4a8_mixed-weighted', 0.05),
        ('w4a4-8', 'w4a4-8_mixed-weighted', 0.05),
        ('w4a4_mixed-matched', 'w4a4_mixed-matched', 0.1),
        ('w4a8_mixed-equalized', 'w4a8_mixed-equalized', 0.05),
        ('w4a4_mixed-equalized', 'w4a4_mixed-equalized', 0.1),
    ],
)
def test_no_method_is_what_is_recommended(name, method, budget):
    found = resolve(name)
    assert found['mixed_precision']['budget'] == {'macs_above': budget}
    assert found == resolve(method)


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('method', ['mse', 'gptq'])
def test_few_bits_of_weights_are_asymmetric(bits, method):
    weight = resolve(f'w{bits}a4_{method}')['qconfig']['weight']
    assert weight['num_bits'] == bits
    assert weight['symmetric'] == (method == 'mse' and bits > 3)


def test_sparse_names_without_a_method_have_their_own():
    named = resolve('w8a8_sparse70')
    assert named == resolve('w8a8_sparse_sparse70')
    assert named['qconfig']['sparsity'] == {'rate': 0.7}
    floating = resolve('sparse70')['qconfig']
    assert floating['weight']['type'] == 'FloatQuantizer'
    assert floating['activation'] is False


def test_auto_starts_from_8_bits():
    assert resolve('auto') == resolve('w8a8_auto')
    assert resolve('auto')['mixed_precision']['candidates'] == [4, 8, 16]


def test_bits_of_attention():
    plain = resolve('w4a5_mse-centering')['qconfig']
    named = resolve('w4a5-6_mse-centering')['qconfig']
    assert 'attention' not in plain
    assert plain['activation']['num_bits'] == 5
    assert named == {
        **plain,
        'attention': {'num_bits': 6},
        'softmax': {'num_bits': 6},
    }


def test_nothing_is_shared_between_two_recipes():
    first = resolve('w4a4_qdrop')
    first['qconfig']['weight']['observer']['type'] = 'changed'
    assert resolve('w4a4_qdrop') != first


@pytest.mark.parametrize('method', STEP_METHODS)
def test_every_method_has_a_qconfig(method):
    recipe = resolve(f'w4a4_{method}')
    assert recipe['qconfig']['weight']['num_bits'] == 4
    # Coded files need one grid for a whole weight.
    sized = method in ('size', 'size-trained')
    assert recipe['qconfig']['weight']['per_channel'] == (not sized)


@pytest.mark.parametrize(
    ('name', 'bits', 'levels'),
    [
        ('w1a8_gptq', 1, 'binary'),
        ('w1.6a8_qdrop', 2, 'ternary'),
        ('w2a8_dual_gptq', 2, 'dual'),
        ('w2a8_midrise', 2, 'mid-rise'),
    ],
)
def test_levels_have_eight_bits_by_role(name, bits, levels):
    qconfig = resolve(name)['qconfig']
    weight = qconfig['weight']
    assert weight['type'] == 'LevelQuantizer'
    assert (weight['num_bits'], weight['levels']) == (bits, levels)
    assert qconfig['depthwise_bits'] == qconfig['edge_bits'] == 8
    assert qconfig['attention']['num_bits'] == 8


def test_attention_on_levels_keeps_the_bits_that_a_name_gives():
    attention = {
        name: resolve(name)['qconfig']['attention']['num_bits']
        for name in ('w1.6a4_gptq', 'w1.6a4-4_gptq', 'w1.6a16_gptq')
    }
    assert list(attention.values()) == [8, 4, 16]


def test_inputs_of_one_bit_are_signs_with_a_threshold():
    points = resolve('w1a1_lsq-qat')['qconfig']
    assert points['weight']['levels'] == 'binary'
    assert points['activation'] == {
        'type': 'LevelQuantizer',
        'num_bits': 1,
        'levels': 'shifted',
        'estimator': 'polynomial',
        'observer': {'type': 'MSEObserver'},
    }
    # First and last layers have 8 bits by default, these by their role.
    assert points['depthwise_bits'] == 8
    assert points['attention']['num_bits'] == 8
    assert (
        'learn_zero_point' in resolve('w1a4_lsq-qat')['qconfig']['activation']
    )


def test_pulls_need_few_levels():
    with pytest.raises(SettingError, match=r'give w1.6a4_flip-qat or w2a4_pl'):
        resolve('w2a4_flip-qat')
    weight = resolve('w2a4_planes_flip-qat')['qconfig']['weight']
    assert weight['pull'] == 'flip'
    assert weight['levels'] == 'two-plane'


def test_attention_of_one_bit():
    qconfig = resolve('w1a1-1_lsq-qat')['qconfig']
    assert qconfig['softmax']['levels'] == 'unsigned'
    assert qconfig['attention']['levels'] == 'shifted'
    assert resolve('w8a8-1_mse')['qconfig']['softmax']['num_bits'] == 1
