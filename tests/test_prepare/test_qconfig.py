"""QConfig: defaults, inheritance, exceptions, errors."""

import json

import pytest

from taskptq.core import (
    AffineQuantizer,
    LSQQuantizer,
    MinMaxObserver,
    MSEObserver,
)
from taskptq.methods.qdetr.alignment import AlignedQuantizer
from taskptq.prepare import QConfig
from taskptq.prepare.patterns import check_all_used, matches

FULL = {
    'weight': {
        'type': 'AffineQuantizer',
        'num_bits': 4,
        'symmetric': False,
        'per_channel': True,
        'observer': {'type': 'MSEObserver', 'norm_p': 2.4},
    },
    'activation': {'type': 'LSQQuantizer', 'num_bits': 6},
    'attention': {'num_bits': 8},
    'softmax': False,
    'edge_bits': 8,
    'edges': ['neck.*'],
    'overrides': [{'pattern': 'backbone.*', 'weight': {'num_bits': 3}}],
    'keep_float': ['re:.*offset'],
}


def bits(qconfig: QConfig, name: str, *, edge: bool = False) -> tuple:
    scheme = qconfig.scheme(name, edge=edge)
    return tuple(
        point and point.spec.num_bits
        for point in (
            scheme.weight,
            scheme.activation,
            scheme.query,
            scheme.softmax,
        )
    )


def operand_bits(qconfig: QConfig, name: str) -> tuple:
    scheme = qconfig.scheme(name)
    return tuple(
        point and point.spec.num_bits
        for point in (scheme.query, scheme.key, scheme.value)
    )


def test_defaults_are_w8a8() -> None:
    scheme = QConfig.from_dict({}).scheme('any')
    assert scheme.weight.spec.num_bits == 8
    assert scheme.weight.spec.symmetric
    assert scheme.weight.per_channel
    assert scheme.activation.spec.num_bits == 8
    assert not scheme.activation.spec.symmetric
    assert not scheme.activation.per_channel
    assert scheme.weight.quantizer is AffineQuantizer
    assert scheme.weight.observer is MinMaxObserver


def test_settings_reach_the_scheme() -> None:
    scheme = QConfig.from_dict(FULL).scheme('head.fc')
    assert scheme.weight.observer is MSEObserver
    assert scheme.weight.observer_kwargs == {'norm_p': 2.4}
    assert scheme.activation.quantizer is LSQQuantizer
    assert scheme.softmax is None


def test_attention_points_inherit_from_activation() -> None:
    scheme = QConfig.from_dict(
        {
            'activation': {
                'type': 'LSQQuantizer',
                'num_bits': 4,
                'observer': {'type': 'MSEObserver', 'norm_p': 3.0},
            },
            'attention': {'num_bits': 8},
        }
    ).scheme('any')
    assert scheme.query.spec.num_bits == 8
    assert scheme.query.quantizer is LSQQuantizer
    assert scheme.query.observer_kwargs == {'norm_p': 3.0}
    assert scheme.query == scheme.key == scheme.value
    assert scheme.softmax == scheme.activation


def test_operands_inherit_from_attention() -> None:
    qconfig = QConfig.from_dict(
        {
            'attention': {'num_bits': 8, 'per_head': True},
            'query': {
                'type': 'AlignedQuantizer',
                'shared': True,
                'observer': {'type': 'MSEObserver'},
            },
            'key': {'num_bits': 5, 'per_head': False},
            'value': False,
        }
    )
    scheme = qconfig.scheme('any')
    assert operand_bits(qconfig, 'any') == (8, 5, None)
    assert scheme.query.quantizer is AlignedQuantizer
    assert scheme.query.quantizer_kwargs == {'shared': True}
    assert scheme.query.observer is MSEObserver
    assert scheme.query.per_channel
    assert not scheme.key.per_channel
    assert not scheme.softmax.per_channel
    plain = json.loads(json.dumps(qconfig.to_dict()))
    again = QConfig.from_dict(plain)
    assert again == qconfig
    assert again.scheme('any') == scheme


def test_operands_like_attention_are_not_written() -> None:
    plain = QConfig.from_dict({'attention': {'num_bits': 4}}).to_dict()
    assert not {'query', 'key', 'value'} & set(plain)
    plain = QConfig.from_dict({'key': {'num_bits': 4}}).to_dict()
    assert {'query', 'key', 'value'} & set(plain) == {'key'}


def test_attention_of_an_override_reaches_the_operands() -> None:
    qconfig = QConfig.from_dict(
        {
            'query': {'type': 'AlignedQuantizer', 'num_bits': 6},
            'overrides': [
                {'pattern': 'encoder*', 'attention': False},
                {
                    'pattern': 'decoder*',
                    'attention': {'num_bits': 4},
                    'value': {'num_bits': 3},
                },
                {'pattern': 'decoder.last', 'query': {'type': 'LSQQuantizer'}},
            ],
        }
    )
    assert operand_bits(qconfig, 'other') == (6, 8, 8)
    assert operand_bits(qconfig, 'encoder.0') == (None, None, None)
    assert operand_bits(qconfig, 'decoder.0') == (4, 4, 3)
    assert qconfig.scheme('decoder.0').query.quantizer is AlignedQuantizer
    assert qconfig.scheme('decoder.last').query.quantizer is LSQQuantizer


@pytest.mark.parametrize('observer', ['MinMaxObserver', 'MSEObserver'])
@pytest.mark.parametrize(
    'type_', ['AffineQuantizer', 'LSQQuantizer', 'PowerOfTwoQuantizer']
)
def test_per_head_makes_a_grid_for_each(type_: str, observer: str) -> None:
    softmax = (
        QConfig.from_dict(
            {
                'softmax': {
                    'type': type_,
                    'per_head': True,
                    'observer': {'type': observer},
                }
            }
        )
        .scheme('any')
        .softmax
    )
    assert softmax.per_channel
    assert softmax.build(num_heads=3).spec.ch_axis == 1
    assert softmax.build().spec.ch_axis is None


def test_per_head_reaches_the_searcher_of_power_grids() -> None:
    softmax = (
        QConfig.from_dict(
            {
                'softmax': {
                    'type': 'PowerOfTwoQuantizer',
                    'per_head': True,
                    'observer': {'type': 'AttentionOutputObserver', 'maps': 2},
                }
            }
        )
        .scheme('any')
        .softmax
    )
    assert not softmax.per_channel
    assert softmax.observer_kwargs == {'per_head': True, 'maps': 2}


def test_attention_may_be_quantized_where_activations_are_float() -> None:
    qconfig = QConfig.from_dict(
        {'activation': False, 'attention': {'num_bits': 8}}
    )
    assert bits(qconfig, 'any') == (8, None, 8, None)
    assert operand_bits(qconfig, 'any') == (8, 8, 8)


def test_another_type_drops_the_arguments_of_the_first() -> None:
    qconfig = QConfig.from_dict(
        {
            'activation': {
                'type': 'LSQQuantizer',
                'learn_zero_point': True,
            },
            'softmax': {'type': 'AffineQuantizer'},
        }
    )
    scheme = qconfig.scheme('any')
    assert scheme.activation.quantizer_kwargs == {'learn_zero_point': True}
    assert scheme.softmax.quantizer_kwargs == {}


def test_overrides_apply_in_order() -> None:
    qconfig = QConfig.from_dict(
        {
            'weight': {'num_bits': 4},
            'overrides': [
                {
                    'pattern': 'backbone.*',
                    'weight': {'num_bits': 2},
                    'activation': {'num_bits': 3},
                },
                {'pattern': 'backbone.layer4*', 'weight': {'num_bits': 6}},
                {'pattern': 're:backbone\\.stem', 'activation': False},
            ],
        }
    )
    assert bits(qconfig, 'head')[:2] == (4, 8)
    assert bits(qconfig, 'backbone.layer1')[:2] == (2, 3)
    assert bits(qconfig, 'backbone.layer4.0')[:2] == (6, 3)
    assert bits(qconfig, 'backbone.stem')[:2] == (2, None)


@pytest.mark.parametrize(
    ('edge_bits', 'expected'), [(8, 8), (None, 3), (2, 3)]
)
def test_edge_bits_are_a_lower_bound(
    edge_bits: int | None, expected: int
) -> None:
    qconfig = QConfig.from_dict(
        {'weight': {'num_bits': 3}, 'edge_bits': edge_bits}
    )
    assert bits(qconfig, 'head')[0] == 3
    assert bits(qconfig, 'head', edge=True)[0] == expected


def test_depthwise_bits_are_a_lower_bound() -> None:
    low = {'num_bits': 4}
    given = {'weight': low, 'activation': low, 'depthwise_bits': 8}
    qconfig = QConfig.from_dict(given)
    depthwise, other = (
        qconfig.scheme('conv', depthwise=flag) for flag in (True, False)
    )
    for point in ('weight', 'activation'):
        assert getattr(depthwise, point).spec.num_bits == 8
        assert getattr(other, point).spec.num_bits == 4
    assert QConfig.from_dict(qconfig.to_dict()) == qconfig
    # Files of recipes without it keep their digests.
    assert 'depthwise_bits' not in QConfig.from_dict({}).to_dict()


def test_override_beats_edge_bits() -> None:
    assert bits(QConfig.from_dict(FULL), 'backbone.conv1', edge=True)[0] == 3


def test_to_dict_round_trips() -> None:
    qconfig = QConfig.from_dict(FULL)
    plain = json.loads(json.dumps(qconfig.to_dict()))
    again = QConfig.from_dict(plain)
    assert again == qconfig
    assert again.to_dict() == plain
    for name in ('backbone.conv1', 'head.fc'):
        assert again.scheme(name) == qconfig.scheme(name)


def test_from_dict_does_not_change_its_argument() -> None:
    given = json.loads(json.dumps(FULL))
    QConfig.from_dict(given).scheme('backbone.conv1', edge=True)
    assert given == FULL


def test_own_classes_come_through_resolve() -> None:

    class Mine(AffineQuantizer):
        pass

    classes = {
        'Mine': Mine,
        'AffineQuantizer': AffineQuantizer,
        'MinMaxObserver': MinMaxObserver,
    }
    qconfig = QConfig.from_dict(
        {'softmax': {'type': 'Mine'}}, resolve=lambda kind, name: classes[name]
    )
    assert qconfig.scheme('any').softmax.quantizer is Mine


def bad_override(**settings: object) -> dict:
    return {'overrides': [{'pattern': 'a', **settings}]}


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (4, 'qconfig=4: give a dict'),
        (
            {'wieght': {}},
            r"qconfig has unknown key 'wieght' \(did you mean "
            r"'weight'\?\): known are weight",
        ),
        ({3: {}}, 'qconfig has unknown key 3'),
        ({'weight': {'bits': 4}}, "qconfig.weight has unknown key 'bits'"),
        ({'weight': {'nun_bits': 4}}, "did you mean 'num_bits'"),
        ({'weight': {4: 4}}, 'qconfig.weight={4: 4}: give a dict'),
        (
            {'weight': {'num_bits': 9}},
            'qconfig.weight.num_bits=9: give weights 2 to 8 bits',
        ),
        ({'weight': {'num_bits': 1}}, 'num_bits=1'),
        ({'weight': {'num_bits': 4.0}}, r'qconfig.weight.num_bits=4\.0'),
        ({'weight': {'num_bits': '4'}}, r"num_bits='4'.*without quotes"),
        ({'weight': {'num_bits': True}}, 'num_bits=True'),
        (
            {'weight': {'symmetric': 'False'}},
            "qconfig.weight.symmetric='False': give True or False",
        ),
        (
            {'weight': {'signed': False}},
            'qconfig.weight.signed=False.*negative',
        ),
        ({'activation': {'signed': 1}}, 'qconfig.activation.signed=1'),
        ({'weight': {'per_channel': 1}}, 'qconfig.weight.per_channel=1'),
        (
            {'attention': {'per_channel': True}},
            'qconfig.attention.per_channel=True: give it to weights and',
        ),
        ({'softmax': {'per_head': 'yes'}}, "qconfig.softmax.per_head='yes'"),
        ({'weight': 4}, 'qconfig.weight=4: give a dict, or False'),
        ({'softmax': True}, 'qconfig.softmax=True'),
        (
            {'weight': {'observer': 'MSEObserver'}},
            "qconfig.weight.observer='MSEObserver': give a dict",
        ),
        (
            {'weight': {'type': 'Nothing'}},
            "qconfig.weight.type='Nothing': .*there is no quantizer",
        ),
        ({'weight': {'type': 5}}, 'qconfig.weight.type=5: give the name'),
        ({'weight': {'type': 'Quantizer'}}, "weight.type='Quantizer'"),
        (
            {'weight': {'type': 'PowerOfTwoQuantizer'}},
            "weight.type='PowerOfTwoQuantizer': give an AffineQuantizer",
        ),
        (
            {'activation': {'type': 'PowerOfTwoQuantizer'}},
            "activation.type='PowerOfTwoQuantizer': .* is for softmax only",
        ),
        (
            {'weight': {'observer': {'type': 'Nothing'}}},
            "qconfig.weight.observer.type='Nothing': .*there is no observer",
        ),
        (
            {'weight': {'observer': {'type': 'Observer'}}},
            "observer.type='Observer': give the name of a registered subclass",
        ),
        (
            {'weight': {'observer': {'type': 'AttentionOutputObserver'}}},
            'weight.observer.type=.* is for softmax only',
        ),
        (
            {'weight': {'observer': {'type': 'MSEObserver', 'p': 1}}},
            "qconfig.weight.observer has unknown key 'p'",
        ),
        (
            {'weight': {'observer': {'type': 'MSEObserver', 'num_bins': -5}}},
            'qconfig.weight.observer.num_bins=-5: give a whole number from 2 '
            'to ',
        ),
        (
            {
                'activation': {
                    'observer': {'type': 'MSEObserver', 'norm_p': '2'}
                }
            },
            "qconfig.activation.observer.norm_p='2'",
        ),
        (
            {'activation': {'type': 'LSQQuantizer', 'learn_zero_point': 1}},
            'qconfig.activation.learn_zero_point=1',
        ),
        (
            {'edge_bits': 12},
            'qconfig.edge_bits=12: give a whole number from 2',
        ),
        ({'edge_bits': 0}, 'qconfig.edge_bits=0'),
        ({'depthwise_bits': 1}, 'qconfig.depthwise_bits=1'),
        ({'edge_bits': 8.0}, r'qconfig.edge_bits=8\.0'),
        ({'edge_bits': '8'}, "edge_bits='8'"),
        (
            {'overrides': [{'weight': {'num_bits': 4}}]},
            r'qconfig.overrides\[0\]=.*: give it a pattern',
        ),
        (
            {'overrides': ['backbone*']},
            r"qconfig.overrides\[0\]='backbone\*': give a dict",
        ),
        (
            {'overrides': {'pattern': 'a'}},
            r'qconfig.overrides=.*: give a list',
        ),
        ({'overrides': [{'pattern': 5}]}, r'overrides\[0\].pattern=5'),
        ({'overrides': [{'pattern': 'a'}] * 3000}, 'not 3000'),
        (
            bad_override(bits=4),
            r"qconfig.overrides\[0\] has unknown key 'bits'",
        ),
        (
            bad_override(weight={'num_bits': 9}),
            r'qconfig.overrides\[0\].weight.num_bits=9',
        ),
        (
            bad_override(attention={'num_bits': 17}),
            r'qconfig.overrides\[0\].attention.num_bits=17',
        ),
        ({'weight': {'per_head': True}}, 'qconfig.weight.per_head=True'),
        (
            {'activation': {'per_head': True}},
            'qconfig.activation.per_head=True',
        ),
        (
            {'attention': {'type': 'AlignedQuantizer'}},
            'qconfig.attention.type=.* AlignedQuantizer is for query and key',
        ),
        (
            {'weight': {'type': 'AlignedQuantizer'}},
            'weight.type=.*AlignedQuantizer',
        ),
        (
            bad_override(value={'type': 'AlignedQuantizer'}),
            r'qconfig.overrides\[0\].value.type=.AlignedQuantizer',
        ),
        ({'query': {'num_bits': 1}}, 'qconfig.query.num_bits=1'),
        (
            {'weight': {'type': 'LevelQuantizer', 'levels': 'ternary'}},
            'qconfig.weight.num_bits=8: LevelQuantizer has fewer: give the',
        ),
        (
            {
                'softmax': {
                    'per_head': True,
                    'observer': {'type': 'AttentionOutputObserver'},
                }
            },
            'softmax.per_head=True.*PowerOfTwoQuantizer',
        ),
        ({'keep_float': 'head*'}, "qconfig.keep_float='head\\*': give a list"),
        ({'keep_float': ['']}, r"qconfig.keep_float\[0\]=''"),
        ({'keep_float': ['re:(']}, r"keep_float\[0\]='re:\('.*regular"),
        ({'keep_float': ['re:(a+)+b']}, r'qconfig.keep_float: .*\(a\+\)\+b'),
        ({'edges': 'head*'}, "qconfig.edges='head\\*'"),
        ({'edges': None}, 'qconfig.edges=None'),
    ],
)
def test_bad_settings_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QConfig.from_dict(config)


def test_sum_of_overrides_is_checked_with_the_layer_name() -> None:
    qconfig = QConfig.from_dict(
        {
            'overrides': [
                {
                    'pattern': 'a*',
                    'softmax': {
                        'type': 'PowerOfTwoQuantizer',
                        'per_head': True,
                    },
                },
                {
                    'pattern': 'ab',
                    'softmax': {
                        'type': 'AffineQuantizer',
                    },
                },
                {
                    'pattern': '*b',
                    'softmax': {
                        'observer': {'type': 'AttentionOutputObserver'}
                    },
                },
            ]
        }
    )
    assert qconfig.scheme('a').softmax.per_channel
    assert not qconfig.scheme('b').softmax.per_channel
    with pytest.raises(ValueError, match=r"layer 'ab', softmax\.per_head"):
        qconfig.scheme('ab')


@pytest.mark.parametrize(
    ('name', 'pattern', 'expected'),
    [
        ('backbone.layer4.0.conv1', 'backbone.layer4*', True),
        ('backbone.layer4.0.conv1', 'layer4*', False),
        ('head.fc', 're:head\\.(fc|conv)', True),
        ('head.fc_cls', 're:head\\.(fc|conv)', False),
        ('Head', 'head', False),
    ],
)
def test_patterns_match_whole_names(
    name: str, pattern: str, expected: bool
) -> None:
    assert matches(name, pattern) is expected


def test_unused_pattern_names_itself_and_some_layers() -> None:
    check_all_used(['a.*'], ['a.b', 'c'], argument='x')
    with pytest.raises(ValueError, match=r"x: pattern 'd\*'.*a\.b, c"):
        check_all_used(['a.*', 'd*'], ['a.b', 'c'], argument='x')
