import pytest

from taskptq.bench.robustness.plan import (
    attack_rows,
    parse_row,
    plan_rows,
    worst_options,
)
from taskptq.robustness.names import joined


def test_plans_of_the_families():
    systems = plan_rows(['systems'], severities=[1])
    assert systems[0].name == 'clean'
    corruptions = plan_rows(['corruptions'], severities=[1, 2, 3, 4, 5])
    assert len(corruptions) == 1 + 75
    validation = plan_rows(['corruptions'], severities=[3], validation=True)
    assert [row.name for row in validation[1:3]] == [
        'speckle_noise=3',
        'gaussian_blur=3',
    ]
    names = [row.name for row in attack_rows([2, 4])]
    assert names == [
        'fgsm=2',
        'fgsm=4',
        'fgsm-transferred=2',
        'fgsm-transferred=4',
        'pgd=2',
        'pgd=4',
        'pgd-transferred=2',
        'pgd-transferred=4',
        'random=2',
        'random=4',
    ]


def test_rows_are_read_from_their_names():
    families = ['systems', 'corruptions', 'attacks']
    for row in plan_rows(families, severities=[1, 5])[1:]:
        assert parse_row(row.name) == row
    row = parse_row('fog=3+ceil_mode')
    assert row.family == 'corruptions'
    assert row.name == 'fog=3+ceil_mode'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('fgsm=0', 'the budget must be above 0'),
        ('pgd=x', 'the budget must be above 0'),
        ('fgsm-soft=4', "noise 'fgsm-soft=4' is unknown"),
    ],
)
def test_unknown_rows(name, message):
    with pytest.raises(ValueError, match=message):
        parse_row(name)


def test_the_worst_option_of_each_kind_is_combined():
    rows = plan_rows(['systems'], severities=[1])
    values = {
        'clean': 0.30,
        'resize=opencv-nearest': 0.20,
        'resize=pillow-box': 0.25,
        'color=nv12': 0.29,
        'precision=bfloat16': 0.0,
        'ceil_mode': 0.31,
    }
    row = worst_options(rows, values)
    assert row.name == 'combined'
    assert joined(row.noises) == 'resize=opencv-nearest+color=nv12+ceil_mode'
    with pytest.raises(ValueError, match='no system noise was measured'):
        worst_options(rows, {'clean': 0.3})
