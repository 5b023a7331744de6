import pytest

from taskptq.core.setting_error import SettingError
from taskptq.prepare import QConfig
from taskptq.prepare.deploy import for_runtime


def test_without_a_runtime_nothing_changes():
    given = {'weight': {'symmetric': False}}
    assert for_runtime(given) == given
    assert 'deploy' not in QConfig.from_dict(given).to_dict()


def test_weights_lose_their_zero_points():
    given = {
        'deploy': 'onnxruntime',
        'weight': {'symmetric': False},
        'overrides': [{'pattern': 'a*', 'weight': {'symmetric': False}}],
    }
    qconfig = QConfig.from_dict(given)
    assert qconfig.points['weight']['symmetric']
    assert qconfig.overrides[0]['weight']['symmetric']
    assert not qconfig.points['activation']['symmetric']
    assert QConfig.from_dict(qconfig.to_dict()) == qconfig


def test_tensorrt_reads_signed_activations_without_zero_points():
    given = {'deploy': 'tensorrt', 'softmax': False, 'key': {'num_bits': 8}}
    points = QConfig.from_dict(given).points
    for point in ('activation', 'attention', 'query', 'key'):
        assert points[point]['symmetric']
        assert points[point]['signed']
    assert points['softmax'] is False


def test_an_unknown_runtime_is_refused():
    with pytest.raises(SettingError, match=r'qconfig\.deploy'):
        QConfig.from_dict({'deploy': 'tflite'})
