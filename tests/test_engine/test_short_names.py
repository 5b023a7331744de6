"""Short names of observers, quantizers, losses and rewrites."""

import pytest

from taskptq.core import MinMaxObserver, MSEObserver
from taskptq.engine.builder import build_loss, build_qconfig, build_rewrites
from taskptq.engine.ptq_hook import PTQHook
from taskptq.engine.recipe import Recipe
from taskptq.engine.short_names import (
    find_by_short_name,
    short_name,
    short_names,
)
from taskptq.registry import (
    OBSERVERS,
    QUANTIZERS,
    RECON_LOSSES,
    REWRITES,
    registered,
)

SHIPPED = {
    OBSERVERS: {
        'aciq': 'ACIQObserver',
        'attention_output': 'AttentionOutputObserver',
        'histogram': 'HistogramObserver',
        'kl': 'KLObserver',
        'minmax': 'MinMaxObserver',
        'moving_average_minmax': 'MovingAverageMinMaxObserver',
        'mse': 'MSEObserver',
        'percentile': 'PercentileObserver',
    },
    QUANTIZERS: {
        'affine': 'AffineQuantizer',
        'aligned': 'AlignedQuantizer',
        'lsq': 'LSQQuantizer',
        'power_of_two': 'PowerOfTwoQuantizer',
    },
    RECON_LOSSES: {
        'foreground_kl': 'ForegroundKLLoss',
        'mse': 'MSEReconLoss',
        'network_uniform': 'NetworkUniform',
        'query_distillation': 'QueryDistillationLoss',
        'selective_focus': 'SelectiveFocusLoss',
    },
    REWRITES: {
        'attention_centering': 'AttentionCentering',
        'bimodal_integration': 'BimodalIntegration',
        'channel_scale': 'ChannelScale',
        'channel_shift_scale': 'ChannelShiftScale',
        'channel_split': 'ChannelSplit',
        'constant_branch': 'ConstantBranch',
        'cross_layer_equalization': 'CrossLayerEqualization',
        'head_rotation': 'HeadRotation',
        'key_shift': 'KeyShift',
    },
}
FULL = dict(
    qconfig=dict(
        weight=dict(type='AffineQuantizer', observer=dict(type='MSEObserver')),
        activation=dict(
            type='LSQQuantizer',
            observer=dict(type='PercentileObserver', percentile=99.9),
        ),
        softmax=dict(type='PowerOfTwoQuantizer'),
        overrides=[
            dict(
                pattern='head.*',
                query=dict(type='AlignedQuantizer'),
                weight=dict(observer=dict(type='MinMaxObserver')),
            )
        ],
    ),
    reconstruction=dict(scope='network', loss=dict(type='NetworkUniform')),
    rewrites=[
        dict(type='CrossLayerEqualization'),
        dict(type='AttentionCentering', values=False),
    ],
)
SHORT = dict(
    qconfig=dict(
        weight=dict(type='affine', observer='mse'),
        activation=dict(
            type='lsq', observer=dict(type='percentile', percentile=99.9)
        ),
        softmax='power_of_two',
        overrides=[
            dict(
                pattern='head.*',
                query='aligned',
                weight=dict(observer='minmax'),
            )
        ],
    ),
    reconstruction=dict(scope='network', loss='network-uniform'),
    rewrites=[
        'cross_layer_equalization',
        dict(type='attention_centering', values=False),
    ],
)


@pytest.fixture
def register():
    """Register classes for one test."""
    added = []

    def add(registry, cls, name=None):
        registry.register_module(module=cls, name=name)
        added.append((registry, name or cls.__name__))
        return cls

    yield add
    for registry, name in added:
        registry.module_dict.pop(name)


@pytest.mark.parametrize('registry', SHIPPED, ids=lambda r: r.name)
def test_every_shipped_part_has_one(registry):
    found = short_names(registry)
    assert {name: found[name] for name in SHIPPED[registry]} == (
        SHIPPED[registry]
    )
    for short, full in SHIPPED[registry].items():
        expected = registered(registry, full)
        assert find_by_short_name(registry, short) is expected
        assert find_by_short_name(registry, short.replace('_', '-'))


def test_both_spellings_are_one_recipe():
    full, short = (Recipe.from_config(**one) for one in (FULL, SHORT))
    assert short.to_dict() == full.to_dict()
    assert short.digest() == full.digest()
    assert short.loss == {'type': 'NetworkUniform'}
    assert short.rewrites[0] == {'type': 'CrossLayerEqualization'}
    points = short.to_dict()['qconfig']
    assert points['weight']['observer'] == {'type': 'MSEObserver'}
    assert points['softmax']['type'] == 'PowerOfTwoQuantizer'
    loss = Recipe.from_config(
        {}, reconstruction={}, loss=dict(type='taskptq.MSEReconLoss')
    ).loss
    assert loss == {'type': 'MSEReconLoss'}


def test_a_hook_merges_a_short_name_into_a_recipe():
    named = PTQHook(
        recipe=[
            'w4a4_qdrop',
            dict(qconfig=dict(activation=dict(observer='percentile'))),
            dict(rewrites=['attention_centering']),
        ]
    ).recipe
    points = named.qconfig.points
    assert points['activation']['observer'] == {'type': 'PercentileObserver'}
    assert points['activation']['type'] == 'LSQQuantizer'
    assert named.rewrites == [{'type': 'AttentionCentering'}]


def test_a_registered_class_has_one(register):
    class SharpestHTTPObserver(MSEObserver):
        pass

    register(OBSERVERS, SharpestHTTPObserver)
    assert short_name('SharpestHTTPObserver', kind='observer') == (
        'sharpest_http'
    )
    found = build_qconfig(dict(weight=dict(observer='sharpest_http')))
    assert found.points['weight']['observer'] == {
        'type': 'SharpestHTTPObserver'
    }


def test_a_registered_name_counts_first(register):
    class Other(MinMaxObserver):
        pass

    register(OBSERVERS, Other, name='mse')
    found = build_qconfig(dict(weight=dict(observer='mse')))
    assert found.points['weight']['observer'] == {'type': 'mse'}


def test_one_name_of_two_classes(register):
    class MSE(MSEObserver):
        pass

    register(OBSERVERS, MSE)
    assert 'mse' not in short_names(OBSERVERS)
    with pytest.raises(
        ValueError,
        match=r"weight: 'mse' may be MSE or MSEObserver: write the observer "
        'by its full name',
    ):
        build_qconfig(dict(weight=dict(observer='mse')))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (
            lambda: build_qconfig(dict(weight=dict(observer='mze'))),
            r"weight: 'mze' is not a registered observer \(the nearest are "
            r'mse, .*\): choose one of these, or name the project',
        ),
        (
            lambda: build_qconfig(dict(softmax='power_two')),
            r"'power_two' is not a registered quantizer .*power_of_two",
        ),
        (
            lambda: build_loss('selectiv_focus'),
            r'the nearest are selective_focus, ',
        ),
        (
            lambda: build_rewrites(['key_shft']),
            r"'key_shft' is not a registered model rewrite .*are key_shift, ",
        ),
        (
            lambda: build_qconfig(dict(weight=dict(type='AffineQuantiser'))),
            r'the nearest are AffineQuantizer, ',
        ),
    ],
    ids=['observer', 'point', 'loss', 'rewrite', 'full'],
)
def test_an_unknown_name_ends_in_the_nearest(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert '\n' not in str(caught.value)


def test_a_hook_names_the_part_that_is_unknown():
    with pytest.raises(ValueError, match=r'rewrites\[1\].*key_shift'):
        PTQHook({}, rewrites=['key_shift', 'key_shft'])
    with pytest.raises(ValueError, match=r'^reconstruction\.loss'):
        PTQHook({}, reconstruction=dict(loss='mze'))


def test_a_file_names_parts_in_full():
    with pytest.raises(ValueError, match="the file needs the observer 'mse'"):
        build_qconfig(dict(weight=dict(observer='mse')), from_file=True)
