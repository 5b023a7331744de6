"""Settings of qconfig.size."""

import pytest

from taskptq.core.settings import SettingError
from taskptq.export.codecs import CHOICES
from taskptq.prepare import QConfig
from taskptq.prepare.size import CODECS, SizeConfig, plain_size, read_size


def test_limits_count_four_bytes_for_each_value():
    assert SizeConfig(ratio=10).limit(1000) == 400
    assert SizeConfig(ratio=16.5).limit(33) == 8
    assert SizeConfig(max_bytes=77).limit(1000) == 77


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({}, 'either a ratio'),
        ({'ratio': 10, 'max_bytes': 7}, 'either a ratio'),
        ({'ratio': 0.5}, 'ratio'),
        ({'ratio': 'ten'}, 'ratio'),
        ({'max_bytes': 0}, 'max_bytes'),
        ({'ratio': 10, 'codec': 'lzw'}, 'codec'),
        ({'ratio': 10, 'num_images': 0}, 'num_images'),
        ({'ratio': 10, 'rate': 1}, 'rate'),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(SettingError, match=words):
        read_size(settings)


def test_a_qconfig_keeps_its_size():
    plain = {'weight': {'num_bits': 8}, 'size': {'ratio': 10}}
    config = QConfig.from_dict(plain)
    assert config.size == SizeConfig(ratio=10)
    again = QConfig.from_dict(config.to_dict())
    assert again.size == config.size
    assert read_size(None) is None
    assert plain_size(None) == {}
    assert 'size' not in QConfig.from_dict({}).to_dict()


def test_codecs_are_those_of_files():
    assert CODECS == CHOICES
