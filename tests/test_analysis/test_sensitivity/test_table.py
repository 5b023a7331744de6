from wild_points import make_report

from taskptq.analysis.sensitivity import RoleSensitivity
from taskptq.analysis.sensitivity.table import report_lines


def test_tensors_roles_and_sentences():
    roles = (
        RoleSensitivity(
            role='depthwise input',
            num_points=2,
            macs=5,
            alone=0.3,
            others=0.1,
        ),
    )
    report = make_report({'a': 0.1, 'b': 0.3}, total=0.5, roles=roles)
    text = '\n'.join(report_lines(report, most=1))
    assert '75.0 %' in text
    assert 'b.input_quantizer' in text
    assert 'a.input_quantizer' not in text
    assert any(
        '80 %' in line and line.endswith('depthwise input')
        for line in text.splitlines()
    )
    assert report.sentences()[0] in text
    assert 'bbox' not in text


def test_the_metric_has_a_column():
    role = RoleSensitivity(
        role='r', num_points=1, macs=1, alone=0.1, others=0.1, metric=0.277
    )
    report = make_report(
        {'a': 0.1},
        total=0.2,
        roles=(role,),
        metric='bbox_mAP',
        metric_float=0.281,
        metric_quant=0.174,
    )
    text = '\n'.join(report_lines(report))
    assert 'bbox_mAP: float 0.281, quantized 0.174' in text
    assert '0.277' in text
