"""Registries filled from the core, and objects from a config's dicts."""

import pytest

from taskptq import core
from taskptq.engine.builder import (
    build_loss,
    build_qconfig,
    build_rewrites,
    resolve,
    to_plain,
)
from taskptq.recipes import resolve as resolve_recipe
from taskptq.reconstruction import ReconstructionConfig
from taskptq.registry import OBSERVERS, QUANTIZERS, RECON_LOSSES, REWRITES
from tests.helpers.method_kinds import LEVEL_METHODS, STEP_METHODS


def test_every_core_class_is_registered():
    for name in core.__all__:
        member = getattr(core, name)
        if not isinstance(member, type):
            continue
        if issubclass(member, core.Observer) and member is not core.Observer:
            assert OBSERVERS.get(name) is member
        if issubclass(member, core.Quantizer) and member is not core.Quantizer:
            assert QUANTIZERS.get(f'taskptq.{name}') is member


def test_qconfig_with_an_observer_of_ones_own(registry_guard):

    @OBSERVERS.register_module()
    class HalfObserver(core.MinMaxObserver):
        pass

    config = dict(weight=dict(observer=dict(type='HalfObserver')))
    scheme = build_qconfig(config).scheme('layer')
    assert scheme.weight.observer is HalfObserver
    assert build_qconfig(build_qconfig(config).to_dict()).to_dict() == (
        build_qconfig(config).to_dict()
    )


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match='NoObserver'):
        resolve('observer', 'NoObserver')


@pytest.mark.parametrize('from_file', [True, False])
@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('observer', 'torch.nn.Identity'),
        ('observer', 'pydoc.pipepager'),
        ('quantizer', 'MinMaxObserver'),
        ('observer', 'no.such.module'),
        ('observer', 3),
        ('quantizer', None),
    ],
)
def test_only_registered_classes_of_the_kind(kind, name, from_file):
    with pytest.raises(ValueError, match='register') as error:
        resolve(kind, name, from_file=from_file)
    assert '\n' not in str(error.value)


def test_a_registered_class_of_another_kind(registry_guard):
    OBSERVERS.register_module(name='Odd', module=dict)
    with pytest.raises(ValueError, match=r'not a subclass of .*Observer'):
        resolve('observer', 'Odd', from_file=True)


def test_dotted_paths_are_for_configs_only():
    name = 'taskptq.core.observers.MinMaxObserver'
    assert resolve('observer', name) is core.MinMaxObserver
    with pytest.raises(ValueError, match='add the project that defines it'):
        resolve('observer', name, from_file=True)


@pytest.mark.parametrize('point', ['weight', 'activation', 'query', 'softmax'])
def test_a_recipe_names_what_is_registered(point):
    settings = dict(
        type=core.AffineQuantizer,
        num_bits=4,
        observer=dict(type='taskptq.MSEObserver'),
    )
    config = {
        point: settings,
        'overrides': [{'pattern': 'a', point: settings}],
    }
    plain = build_qconfig(config).to_dict()
    for found in (plain[point], plain['overrides'][0][point]):
        assert found['type'] == 'AffineQuantizer'
        assert found['observer']['type'] == 'MSEObserver'
    assert build_qconfig(plain, from_file=True).to_dict() == plain


@pytest.mark.parametrize(
    'change',
    [
        dict(overrides=5),
        dict(overrides=[5]),
        dict(weight=[1]),
        dict(edges=3),
        dict(weight=dict(observer=5)),
        dict(weight=dict(num_bits=[])),
        dict(activation=dict(type=['a'])),
    ],
)
def test_a_recipe_of_the_wrong_shape(change):
    words = f'recipe|{next(iter(change))}'
    with pytest.raises(ValueError, match=words) as error:
        build_qconfig(change, from_file=True)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'build', [build_loss, lambda config: build_rewrites([config])]
)
@pytest.mark.parametrize(
    'kind', ['torch.nn.Identity', core.MinMaxObserver, 'NoSuchThing', None]
)
def test_losses_and_rewrites_are_registered(build, kind):
    with pytest.raises(ValueError, match='register'):
        build(dict(type=kind))


def test_loss_and_rewrites(registry_guard):

    @REWRITES.register_module()
    class Double:
        def __init__(self, *, factor):
            self.factor = factor

    @RECON_LOSSES.register_module()
    class OwnLoss:
        pass

    assert build_loss(None) is None
    assert isinstance(build_loss(dict(type='OwnLoss')), OwnLoss)
    assert not build_loss(dict(type='MSEReconLoss', normalize=False)).normalize
    (rewrite,) = build_rewrites([dict(type='Double', factor=3)])
    assert rewrite.factor == 3


def test_to_plain():
    from mmengine.config import ConfigDict

    value = ConfigDict(a=(1, ConfigDict(b=core.MinMaxObserver)), c=None)
    plain = to_plain(value)
    assert plain == {
        'a': [1, {'b': 'taskptq.core.observers.MinMaxObserver'}],
        'c': None,
    }
    assert type(plain) is type(plain['a'][1]) is dict


@pytest.mark.parametrize('method', STEP_METHODS)
@pytest.mark.parametrize('bits', ['w2a4-8', 'w4a4-8', 'w6a6-8', 'w8a8'])
def test_recipe(bits, method):
    recipe = resolve_recipe(f'{bits}_{method}')
    scheme = build_qconfig(recipe['qconfig']).scheme('layer')
    reconstruction = to_plain(recipe['reconstruction'])
    if reconstruction is not None:
        loss = reconstruction.pop('loss', None)
        ReconstructionConfig.from_dict(reconstruction)
        assert loss is None or build_loss(loss) is not None
    assert bits == bits_of(scheme)
    weight = scheme.weight.spec
    statistics = ('minmax', 'mse', 'aciq', 'head-mse', 'percentile')
    # A rewrite, and a grid for each head or channel, leave statistics as
    # they are.
    plain = method
    for suffix in (
        '-heads',
        '-centering',
        '-constant-branch',
        '-channel-scale',
        '-channel-split',
        '-depthwise',
        '-equalization',
        '-head-rotation',
        '-outlier-suppression',
    ):
        plain = plain.removesuffix(suffix)
    # These choose bits first and round by GPTQ only where that is needed.
    chosen = method in ('mixed', 'auto')
    without = plain in statistics or method.endswith('-qat') or chosen
    # Zeros, and one step for a whole weight, need no zero point.
    about_zero = method.startswith(('size', 'sparse'))
    if (weight.num_bits <= 3 or not without) and not about_zero:
        assert not weight.symmetric
    assert (reconstruction is None) == without
    assert ('distillation' in recipe) == method.endswith('-qat')


@pytest.mark.parametrize('method', LEVEL_METHODS)
@pytest.mark.parametrize('bits', ['w1a1', 'w1.6a4'])
def test_recipe_of_levels(bits, method):
    qconfig = build_qconfig(resolve_recipe(f'{bits}_{method}')['qconfig'])
    weight = qconfig.scheme('layer').weight
    assert weight.quantizer is core.LevelQuantizer
    assert weight.quantizer_kwargs['pull'] == method.rpartition('+')[2][:-4]
    activation = qconfig.scheme('layer').activation
    assert activation.spec.num_bits == int(bits[-1])


def bits_of(scheme):
    """Return the bits as files name them, e.g. w4a4-8."""
    weight, activation, key = (
        config.spec.num_bits
        for config in (scheme.weight, scheme.activation, scheme.key)
    )
    name = f'w{weight}a{activation}'
    return name if key == activation else f'{name}-{key}'


@pytest.mark.parametrize(
    ('build', 'config', 'known'),
    [
        (
            lambda config: build_rewrites([config]),
            dict(type='CrossLayerEqualization', alfa=0.5),
            'alpha, limit',
        ),
        (build_loss, dict(type='SelectiveFocusLoss', fokus='soft'), 'focus'),
    ],
)
def test_unknown_argument_is_one_sentence(build, config, known):
    name = list(config)[1]
    with pytest.raises(ValueError, match='takes no argument') as caught:
        build(config)
    assert f'{config["type"]} takes no argument {name!r}' in str(caught.value)
    assert known in str(caught.value)
