"""Settings of a reconstruction: refused in one sentence, read again."""

import json

import numpy as np
import pytest

from taskptq.reconstruction import (
    ReconstructionConfig,
)


@pytest.mark.parametrize(
    'setting',
    [
        {'rounding': 'up'},
        {'scope': 'head'},
        {'autocast': 'float16'},
        {'steps': 0},
        {'batch_size': 0},
        {'drop_prob': 1.5},
        {'warmup': -0.1},
        {'step': 3},
        {'steps': '400'},
        {'steps': 3.5},
        {'batch_size': True},
        {'weight_lr': '1e-3'},
        {'weight_lr': None},
        {'learn_scales': 1},
        {'patience': 0.5},
    ],
)
def test_settings_that_cannot_be(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        ReconstructionConfig.from_dict(setting)


def test_numbers_of_any_kind_are_taken():
    config = ReconstructionConfig(
        steps=np.int64(3), weight_lr=1, scale_lr=np.float32(0.5), patience=None
    )
    assert (config.steps, config.weight_lr, config.scale_lr) == (3, 1, 0.5)
    assert json.loads(json.dumps(config.to_dict()))['steps'] == 3


def test_settings_round_trip():
    config = ReconstructionConfig.from_dict({'blocks': ['a*'], 'steps': 7})
    again = ReconstructionConfig.from_dict(config.to_dict())
    assert again == config
    assert config.blocks == ('a*',)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'network': {'weight_lr': 0.1}}, 'give network_steps as well'),
        (
            {'keep_better': True},
            'keep_better=True: remove it, or train the whole',
        ),
        (
            {'channels_last': True},
            'channels_last=True: remove it, or train the whole',
        ),
        (
            {'network_batch_size': 0},
            'network_batch_size=0: give a whole number',
        ),
        ({'network': {'steps': 3}, 'network_steps': 3}, "unknown key 'steps'"),
        ({'network': {'drop_prob': 2.0}, 'network_steps': 3}, 'drop_prob=2.0'),
        (
            {'network': {'weight_lr': '1e-3'}, 'network_steps': 3},
            "weight_lr='1e-3': give a number .*write 1.0e-3",
        ),
    ],
)
def test_network_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionConfig(**settings)
