import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from tiny_detectors import build_settings, detection_batch, zoo_settings

from taskptq.engine.network_parts import parts_of


@pytest.mark.parametrize('chosen', ['teacher', 'student'])
def test_the_detector_that_predicts_is_cut(chosen):
    inner = zoo_settings('faster', {})
    model = build_settings(
        dict(
            type='SoftTeacher',
            detector=inner,
            data_preprocessor=inner['data_preprocessor'],
            semi_train_cfg=dict(freeze_teacher=True),
            semi_test_cfg=dict(predict_on=chosen),
        )
    ).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network', 'roi_head.bbox_head']
    weights = dict(parts[0].network.named_parameters())
    known = dict(getattr(model, chosen).named_parameters())
    assert weights['backbone.conv1.weight'] is known['backbone.conv1.weight']
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))
