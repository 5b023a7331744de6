"""Settings are checked before any work."""

import pytest

from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.core.settings import SettingError


def test_defaults_round_trip():
    config = MixedPrecisionConfig()
    assert MixedPrecisionConfig.from_dict(config.to_dict()) == config


def test_a_latency_table_round_trips():
    table = dict(float_ms=2.0, layers=dict(conv={'8x8': 1.0}), threads=1)
    config = MixedPrecisionConfig(latency_table=table)
    assert config.to_dict()['latency_table'] == table
    assert MixedPrecisionConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(keep=1), 'mixed_precision.keep=1'),
        (dict(keep=0), 'mixed_precision.keep=0'),
        (dict(budget=dict(bop=1)), "unknown key 'bop'.*did you mean 'bops'"),
        (dict(budget=dict(bops=-1)), 'mixed_precision.budget.bops=-1'),
        (dict(candidates=[]), 'mixed_precision.candidates'),
        (dict(candidates=[8, 8]), 'give each candidate once'),
        (dict(candidates=[17]), r'mixed_precision.candidates\[0\]=17'),
        (dict(candidates=['flaot']), "2 to 16 bits, or 'float'"),
        (dict(points=['input']), r'mixed_precision.points\[0\]'),
        (
            dict(reconstruction=dict(rounding='gtpq')),
            r'mixed_precision.reconstruction.*rounding',
        ),
        (dict(latency_table=dict(layers={})), "give the key 'float_ms'"),
        (
            dict(latency_table=dict(float_ms=0, layers={})),
            'latency_table.float_ms=0',
        ),
        (
            dict(latency_table=dict(float_ms=1, layers=dict(a={'8x8': -1}))),
            'latency_table.layers.a.8x8=-1',
        ),
        (dict(kep=0.9), "did you mean 'keep'"),
        ([], 'mixed_precision'),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        MixedPrecisionConfig.from_dict(settings)
