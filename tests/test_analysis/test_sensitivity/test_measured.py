import pytest
from wild_net import switches

from taskptq.analysis.sensitivity.measured import (
    measure_losses,
    measure_roles,
    roles_of,
)
from taskptq.analysis.sensitivity.meter import Meter
from taskptq.analysis.sensitivity.state import MeasuredState

WILD = 'depthwise.input_quantizer'


def forward(model, batch):
    return model(batch)


@pytest.fixture
def measured(wild, batches, adapter):
    def measure(**options):
        return measure_losses(
            wild, batches, forward=forward, adapter=adapter, **options
        )

    return measure


def test_alone(measured, wild, batches, adapter):
    before = switches(wild)
    report = measured(candidates=(4, 8), names=[WILD])
    assert switches(wild) == before
    (point,) = report.points
    assert point.losses['4'] > point.losses['8'] > 0
    meter = Meter(wild, batches, adapter=adapter)
    assert point.loss == pytest.approx(meter.measure([WILD]))
    assert report.total == pytest.approx(meter.measure(meter.names))
    assert report.estimator == 'alone'


def test_leave_out(measured, wild, batches, adapter):
    report = measured(estimator='leave-out')
    meter = Meter(wild, batches, adapter=adapter)
    rest = meter.measure(meter.all_but([WILD]))
    worst = report.sorted()[0]
    assert worst.name == WILD
    assert worst.losses == {'8': pytest.approx(report.total - rest)}
    assert all(point.loss >= 0 for point in report.points)


def test_few_images(measured):
    assert measured(num_images=3, names=[WILD]).num_images == 4


def test_an_interrupted_run_goes_on(measured, tmp_path, monkeypatch):
    path = tmp_path / 'state.json'
    first = measured(candidates=[8], state=MeasuredState(path))
    monkeypatch.setattr(
        Meter, 'measure', lambda *_, **__: pytest.fail('measured again')
    )
    again = measured(candidates=[8], state=MeasuredState(path))
    assert [p.losses for p in again.points] == [p.losses for p in first.points]


def test_refusals(measured, wild, adapter):
    with pytest.raises(ValueError, match="estimator='gradient'"):
        measured(estimator='gradient')
    with pytest.raises(ValueError, match='no batch'):
        measure_losses(wild, [], forward=forward, adapter=adapter)


def test_roles(measured, wild, batches, adapter):
    points = measured(candidates=[8]).points
    counted = []
    meter = Meter(wild, batches, adapter=adapter)
    total, roles = measure_roles(meter, points, advance=counted.append)
    found = {role.role: role for role in roles}
    assert [role.others for role in roles] == sorted(r.others for r in roles)
    assert found['depthwise input'].others < 0.5 * total
    assert found['depthwise input'].alone > 0.5 * total
    assert found['after SiLU'].num_points == 2
    assert found['weight'].num_points == 4
    assert len(counted) == len(roles)


def test_equal_groups_are_measured_once(measured):
    points = measured(candidates=[8]).points
    groups = roles_of([p for p in points if p.layer == 'depthwise'])
    # 'after ReLU' holds the same one point.
    assert list(groups) == ['depthwise input', 'depthwise weight']
