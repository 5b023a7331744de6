import json
from dataclasses import replace

import pytest
import torch
from wild_net import PlainAdapter, WildNet

from taskptq.analysis.sensitivity import SensitivityReport
from taskptq.analysis.sensitivity.meter import Meter
from taskptq.engine.recipe import Recipe
from taskptq.engine.sensitivity_run import (
    STATE_FILE,
    SensitivitySettings,
    Subject,
    analyse,
    write_report,
)

SETTINGS = SensitivitySettings(estimator='alone', candidates=(8,))


@pytest.fixture
def make_subject():
    torch.manual_seed(0)
    model, batches = WildNet().eval().state_dict(), [torch.randn(4, 3, 8, 8)]

    def make(**changes):
        fresh = WildNet().eval()
        fresh.load_state_dict(model)
        subject = Subject(
            model=fresh,
            batches=batches,
            recipe=Recipe.from_config({'edge_bits': None}),
            forward=lambda m, x: m(x),
            adapter=PlainAdapter(),
        )
        return replace(subject, **changes)

    return make


def test_what_is_written(make_subject, tmp_path):
    report = analyse(make_subject(), SETTINGS, out=tmp_path)
    assert (tmp_path / STATE_FILE).exists()
    write_report(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'sensitivity.json',
        'sensitivity.png',
    ]
    content = json.loads((tmp_path / 'sensitivity.json').read_text())
    assert SensitivityReport.from_dict(content) == report


def test_a_killed_run_goes_on(make_subject, tmp_path, monkeypatch):
    measure, calls = Meter.measure, []

    def killed(self, *args, **kwargs):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(args)
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Meter, 'measure', killed)
    with pytest.raises(KeyboardInterrupt):
        analyse(make_subject(), SETTINGS, out=tmp_path)
    calls.clear()
    monkeypatch.setattr(
        Meter,
        'measure',
        lambda self, *a, **k: calls.append(a) or measure(self, *a, **k),
    )
    resumed = analyse(make_subject(), SETTINGS, out=tmp_path)
    num_resumed = len(calls)
    anew = analyse(
        make_subject(), replace(SETTINGS, resume=False), out=tmp_path
    )
    assert len(calls) - num_resumed == num_resumed + 5
    assert [p.losses for p in resumed.points] == [
        p.losses for p in anew.points
    ]


def test_numbers_of_another_model_or_recipe_are_not_used(
    make_subject, tmp_path
):
    first = analyse(make_subject(), SETTINGS, out=tmp_path)
    other = make_subject()
    with torch.no_grad():
        other.model.head.weight.mul_(torch.randn(4, 8, 1, 1))
    changed = analyse(other, SETTINGS, out=tmp_path)
    coarser = make_subject(
        recipe=Recipe.from_config(
            {'edge_bits': None, 'activation': {'num_bits': 6}}
        )
    )
    losses = [
        [point.loss for point in report.points]
        for report in (
            first,
            changed,
            analyse(coarser, SETTINGS, out=tmp_path),
        )
    ]
    assert losses[0] != losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('estimator', 'best'),
        ('num_measured', 0),
        ('num_probes', 0),
        ('candidates', (1,)),
    ],
)
def test_impossible_settings(field, value):
    with pytest.raises(ValueError, match=field):
        SensitivitySettings(**{field: value})
