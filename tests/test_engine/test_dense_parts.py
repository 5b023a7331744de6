import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from tiny_detectors import build, detection_batch

from taskptq.engine.network_parts import parts_of


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'atss', 'gfl'])
def test_dense_detectors_decode_what_a_part_computes(name):
    model = build(name, {}).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network']
    assert parts[0].output_names[0] == 'cls_scores.0'
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_a_detector_of_another_kind_is_refused(monkeypatch):
    model = build('retinanet', {}).eval()
    monkeypatch.setattr(type(model), 'predict', lambda self: None)
    with pytest.raises(ValueError, match=r'RetinaNet has a predict\(\)'):
        parts_of(model).parts({})
