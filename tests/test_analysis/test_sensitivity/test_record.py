import json

import pytest
from wild_points import make_point

from taskptq.analysis.sensitivity import RoleSensitivity, SensitivityReport


@pytest.fixture
def report():
    return SensitivityReport(
        points=(
            make_point('a', loss=0.1, role='weight'),
            make_point('b', loss=0.3),
            make_point('c', loss=0.01, role='weight'),
        ),
        estimator='gradient',
        num_images=8,
        total=0.4,
        roles=(
            RoleSensitivity(
                role='weight', num_points=2, macs=20, alone=0.1, others=0.3
            ),
        ),
        notes=['A note.'],
    )


def test_loss_of_bits():
    point = make_point(loss=0.1)
    assert point.loss == 0.1
    assert point.loss_at(4) == point.loss_at('4') == 0.4
    assert point.loss_at('float') == 0
    with pytest.raises(KeyError):
        point.loss_at(2)


def test_order(report):
    assert [p.layer for p in report.sorted()] == ['b', 'a', 'c']
    assert list(report.by_role()) == ['depthwise input', 'weight']
    assert [p.layer for p in report.by_role()['weight']] == ['a', 'c']
    assert report.estimated == pytest.approx(0.41)


def test_json_round_trip(report):
    text = json.dumps(report.to_dict())
    again = SensitivityReport.from_dict(json.loads(text))
    assert again == report


def test_unknown_field_is_refused(report):
    with pytest.raises(TypeError, match='surplus'):
        SensitivityReport.from_dict({**report.to_dict(), 'surplus': 1})
