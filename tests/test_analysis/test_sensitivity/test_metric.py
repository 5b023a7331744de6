from dataclasses import replace

import pytest

from taskptq.analysis.sensitivity.gradient import estimate_losses
from taskptq.analysis.sensitivity.measured import measure_roles
from taskptq.analysis.sensitivity.meter import Meter
from taskptq.analysis.sensitivity.metric import add_metric, num_evaluations
from taskptq.analysis.sensitivity.state import MeasuredState
from taskptq.core.switches import quantizers


@pytest.fixture
def report(wild, batches, adapter):
    found = estimate_losses(
        wild, batches, forward=lambda m, x: m(x), adapter=adapter
    )
    meter = Meter(wild, batches, adapter=adapter)
    total, roles = measure_roles(meter, found.points)
    return replace(found, total=total, roles=roles)


def count_on(model):
    """Stands for an evaluation: how many quantizers were on."""
    return float(sum(one.enabled for _, one in quantizers(model)))


def test_all_but_one(wild, report):
    counted = []
    found = add_metric(
        wild,
        report,
        evaluate=lambda: count_on(wild),
        state=MeasuredState(),
        most=2,
        advance=counted.append,
    )
    assert (found.metric_float, found.metric_quant) == (0, 10)
    assert {p.name: p.metric for p in found.points if p.metric} == {
        p.name: 9 for p in report.sorted()[:2]
    }
    assert all(r.metric == 10 - r.num_points for r in found.roles)
    assert len(counted) == num_evaluations(report.points, most=2)


def test_alone_evaluates_one(wild, report):
    found = add_metric(
        wild,
        replace(report, estimator='alone'),
        evaluate=lambda: count_on(wild),
        state=MeasuredState(),
        most=1,
    )
    assert [p.metric for p in found.points if p.metric is not None] == [1]


def test_evaluations_are_kept(wild, report, tmp_path):
    path = tmp_path / 'state.json'
    options = {'most': 1}
    first = add_metric(
        wild,
        report,
        evaluate=lambda: count_on(wild),
        state=MeasuredState(path),
        **options,
    )
    again = add_metric(
        wild,
        report,
        evaluate=lambda: pytest.fail('evaluated again'),
        state=MeasuredState(path),
        **options,
    )
    assert again == first
