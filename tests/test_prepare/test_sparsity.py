import pytest

from taskptq.core.settings import SettingError
from taskptq.prepare import QConfig
from taskptq.prepare.sparsity import SparsityConfig, read_sparsity


def test_reads_back_what_it_writes():
    config = SparsityConfig(rate=0.7, keep_dense=['neck*'])
    assert SparsityConfig.from_dict(config.to_dict()) == config
    pattern = SparsityConfig(pattern='2:4')
    assert pattern.kept_of == (2, 4)
    assert read_sparsity(pattern.to_dict()) == pattern
    assert read_sparsity(None) is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, r'qconfig\.sparsity\.rate=None: give a share such as 0\.7'),
        ({'rate': 1.0}, r'qconfig\.sparsity\.rate=1\.0'),
        ({'rate': -0.1}, r'qconfig\.sparsity\.rate=-0\.1'),
        ({'rate': 0.5, 'pattern': '2:4'}, 'the pattern 2:4 has its own'),
        ({'pattern': '4:4'}, r"pattern='4:4': give 'unstructured'"),
        ({'pattern': 'half'}, r"pattern='half': give 'unstructured'"),
        ({'rate': 0.5, 'allocation': 'L2'}, r"allocation='L2'"),
        (
            {'rate': 0.5, 'rates': 1},
            r"qconfig\.sparsity has unknown key 'rates'",
        ),
        ([0.7], r'qconfig\.sparsity=\[0\.7\]'),
    ],
)
def test_refuses_by_name(settings, message):
    with pytest.raises(SettingError, match=message):
        read_sparsity(settings)


def test_a_qconfig_without_sparsity_is_written_as_before():
    assert 'sparsity' not in QConfig.from_dict({}).to_dict()
    plain = QConfig.from_dict({'sparsity': {'rate': 0.5}}).to_dict()
    assert plain['sparsity']['rate'] == 0.5
    assert QConfig.from_dict(plain).sparsity == SparsityConfig(rate=0.5)


def test_only_weights_can_be_float_by_type():
    config = {'weight': {'type': 'FloatQuantizer'}}
    assert QConfig.from_dict(config).points['weight']['type']
    with pytest.raises(SettingError, match='weight only'):
        QConfig.from_dict({'activation': {'type': 'FloatQuantizer'}})
