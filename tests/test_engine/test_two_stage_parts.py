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


@pytest.mark.parametrize(
    ('name', 'layers'),
    [
        ('faster', ['roi_head.bbox_head']),
        ('cascade', [f'roi_head.bbox_head.{i}' for i in range(3)]),
    ],
)
def test_two_stages_run_in_parts(name, layers):
    model = build(name, {}).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network', *layers]
    assert parts[1].input_names == ('input0',)
    assert parts[1].dynamic_axes['output.0'] == {0: 'rois'}
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_a_file_of_other_parts_is_refused():
    model = build('faster', {}).eval()
    with pytest.raises(ValueError, match='check that config and file'):
        parts_of(model).install({'network': None})
