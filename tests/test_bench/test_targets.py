"""Kinds of targets, and targets over several tables."""

import importlib
import json

import pytest
import yaml

pytest.importorskip('mmengine')

LDS = 'agreement/lds'


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


def make_row(method, value, *, lds=1.0, bits='w3a3', seed=0, seconds=10.0):
    return {
        'method': method,
        'bits': bits,
        'seed': seed,
        'value': value,
        'metrics': {LDS: lds},
        'calibration_seconds': 1.0,
        'reconstruction_seconds': seconds,
        'file_bytes': 2048,
    }


def make_results(*rows, value=0.8):
    return {
        'model': 'm',
        'dataset': 'd',
        'metric': 'f1',
        'rows': list(rows),
        'float': {'value': value, 'metrics': {LDS: 0.0}},
    }


ROWS = (
    make_row('qdrop', 0.6, lds=4.0, seconds=300.0),
    make_row('focus', 0.63, lds=3.0, seconds=60.0),
)


def one(tools, target, *rows):
    targets = tools('taskptq.bench.targets')
    target = {'name': 'n', 'bits': 'w3a3', **target}
    (record,) = targets.evaluate_targets([target], make_results(*rows or ROWS))
    return record, targets.describe(record)


@pytest.mark.parametrize(
    ('target', 'status', 'measured', 'text'),
    [
        ({'method': 'float', 'min_value': 0.8}, 'pass', 0.8, 'float 0.800'),
        ({'method': 'float', 'min_value': 0.9}, 'fail', 0.8, 'short by 0.100'),
        (
            {'method': 'focus', 'metric': LDS, 'min_value': 2.5},
            'pass',
            3.0,
            '',
        ),
        (
            {'method': 'focus', 'max_drop_from_float': 0.17},
            'pass',
            0.17,
            'loses 17.00 points, target 17.00',
        ),
        ({'method': 'focus', 'max_drop_from_float': 0.16}, 'fail', 0.17, ''),
        (
            {'method': 'focus', 'max_ratio_to': {'qdrop': 1.06}},
            'pass',
            1.05,
            '',
        ),
        (
            {'method': 'focus', 'metric': LDS, 'max_ratio_to': {'qdrop': 0.8}},
            'pass',
            0.75,
            'focus 3.000, qdrop 4.000: ratio 0.75, target at most',
        ),
        (
            {
                'method': 'focus',
                'metric': 'reconstruction_seconds',
                'max_ratio_to': {'qdrop': 0.1},
            },
            'fail',
            0.2,
            'at most 0.10',
        ),
        (
            {'method': 'focus', 'min_gain_over': {'qdrop': 0.02}},
            'pass',
            0.03,
            'gain +0.030',
        ),
        (
            {'method': 'focus', 'min_gain_over': {'qdrop': 0.02, 'float': 0}},
            'fail',
            -0.17,
            'float 0.800: gain -0.170',
        ),
        (
            {'method': 'focus', 'max_ratio_to': {'float': 0.9, 'qdrop': 1.04}},
            'fail',
            1.05,
            'qdrop 0.600: ratio 1.05',
        ),
        (
            {
                'method': 'focus',
                'metric': LDS,
                'lower_is_better': True,
                'min_gain_over': {'qdrop': 1.5},
            },
            'fail',
            1.0,
            'short by 0.500',
        ),
    ],
)
def test_bounds(tools, target, status, measured, text):
    record, line = one(tools, target)
    assert record['status'] == status
    assert record['measured'] == pytest.approx(measured)
    assert line.startswith(status)
    assert text in line


@pytest.mark.parametrize(
    'target',
    [
        {'method': 'focus', 'max_ratio_to': {'brecq': 1}},
        {'method': 'brecq', 'min_value': 0.1},
        {'method': 'focus', 'metric': 'roads/f1', 'min_value': 0.1},
        {
            'method': 'focus',
            'metric': 'reconstruction_seconds',
            'min_share_of_float': 1.0,
        },
    ],
)
def test_what_is_not_measured_is_missing(tools, target):
    record, line = one(tools, target)
    assert record['status'] == 'missing'
    assert 'is not measured yet' in line


def test_the_best_is_the_lowest_where_lower_is_better(tools):
    target = {'method': ['qdrop', 'focus'], 'metric': LDS, 'min_value': 0.0}
    assert one(tools, target)[0]['method'] == 'qdrop'
    target['lower_is_better'] = True
    assert one(tools, target)[0]['method'] == 'focus'


@pytest.mark.parametrize(
    ('focus', 'status'), [((0.57, 0.57), 'pass'), ((0.53, 0.57), 'fail')]
)
def test_not_below_allows_the_seed_spread(tools, focus, status):
    rows = [
        make_row(method, value, seed=seed)
        for method, values in (('qdrop', (0.58, 0.62)), ('focus', focus))
        for seed, value in enumerate(values)
    ]
    record, line = one(tools, {'method': 'focus', 'not_below': 'qdrop'}, *rows)
    assert record['status'] == status
    assert record['required'] == pytest.approx(-0.04)
    assert ('short by' in line) == (status == 'fail')


def test_not_below_where_lower_is_better(tools):
    target = {'method': 'focus', 'metric': LDS, 'not_below': 'qdrop'}
    assert one(tools, target)[0]['status'] == 'fail'
    target['lower_is_better'] = True
    assert one(tools, target)[0]['status'] == 'pass'


def test_plain_says_which_bits_discriminate(tools):
    rows = (*ROWS, make_row('minmax', 0.3), make_row('mse', 0.75))
    target = {'method': 'focus', 'above': 'qdrop'}
    assert one(tools, target, *rows)[0]['discriminating'] is True
    target['plain'] = 'mse'
    assert one(tools, target, *rows)[0]['discriminating'] is False


def test_a_target_needs_bits(tools):
    with pytest.raises(ValueError, match="target 'n' names no bits"):
        tools('taskptq.bench.targets').evaluate_targets(
            [{'name': 'n', 'method': 'focus'}], make_results(*ROWS)
        )


@pytest.fixture
def repo(tmp_path):
    """Two tables that compare at different bits, and a set of targets."""
    family = tmp_path / 'projects' / 'lanes' / 'configs'
    (family / 'results').mkdir(parents=True)
    bits = {'a': 'w3a3', 'b': 'w4a4'}
    for name, one_bits in bits.items():
        (family / f'{name}_d.table.yml').write_text(
            yaml.safe_dump(
                {
                    'model': name,
                    'dataset': 'd',
                    'config': 'c.py',
                    'checkpoint': 'c.pth',
                    'metric': 'f1',
                    'discriminating': one_bits,
                    'groups': [
                        {'methods': ['qdrop', 'focus'], 'bits': one_bits}
                    ],
                }
            )
        )
    (family / 'lanes.targets.yml').write_text(
        yaml.safe_dump(
            {
                'tables': ['a_d', 'b_d'],
                'targets': [
                    {
                        'name': 'score',
                        'method': 'focus',
                        'min_gain_over': {'qdrop': 0.02},
                    },
                    {
                        'name': 'distortion',
                        'method': 'focus',
                        'metric': LDS,
                        'max_ratio_to': {'qdrop': 0.8},
                    },
                    {
                        'name': 'keeps',
                        'method': 'qdrop',
                        'bits': 'w8a8',
                        'min_share_of_float': 0.5,
                    },
                ],
            }
        )
    )
    (tmp_path / 'projects' / 'lanes' / 'README.md').write_text(
        '<!-- targets:lanes -->\n<!-- /targets -->\n'
        '<!-- table:a_d -->\n<!-- /table -->\n'
    )
    return tmp_path


def add_results(repo, name, *rows):
    path = repo / 'projects/lanes/configs/results' / f'{name}.json'
    path.write_text(json.dumps(make_results(*rows)))


def readme(tools, repo):
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    return (repo / 'projects/lanes/README.md').read_text()


def test_sets_without_results_say_so(tools, repo):
    assert readme(tools, repo).count('Not measured yet.') == 2


def test_sets_average_over_tables(tools, repo):
    add_results(repo, 'a_d', *ROWS)
    text = readme(tools, repo)
    assert (
        '- partial  score: focus 0.630, qdrop 0.600: gain +0.030, target '
        'at least +0.020 (mean over 1 of 2 models)'
    ) in text
    assert 'Methods are compared at W3A3.' in text
    # Only rows at the table's own bits count.
    add_results(
        repo,
        'b_d',
        make_row('focus', 0.9),
        make_row('qdrop', 0.7, lds=2.0, bits='w4a4'),
        make_row('focus', 0.7, lds=2.4, bits='w4a4'),
    )
    text = readme(tools, repo)
    assert (
        '- fail     score: focus 0.665, qdrop 0.650: gain +0.015, target '
        'at least +0.020, short by 0.005 (mean over 2 of 2 models)'
    ) in text
    assert '- fail     distortion: focus 2.700, qdrop 3.000: ratio 0.90' in (
        text
    )
    assert '- missing  keeps: qdrop w8a8 is not measured yet\n' in text


def test_printed_with_the_other_targets(tools, repo, capsys):
    add_results(repo, 'a_d', *ROWS)
    tools('taskptq.cli.collect').main(['--root', str(repo), '--targets'])
    assert 'lanes\npartial  score: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'tables': ['c_d']}, "there is no table 'c_d'"),
        ({'target': []}, 'has the keys'),
        (
            {'targets': [{'name': 'n', 'method': ['a', 'b']}]},
            'several methods',
        ),
        (
            {'targets': [{'name': 'n', 'method': 'a', 'max': 1}]},
            "unknown key 'max'",
        ),
    ],
)
def test_wrong_sets_are_errors(tools, repo, changes, message):
    add_results(repo, 'a_d', *ROWS)
    path = repo / 'projects/lanes/configs/lanes.targets.yml'
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(SystemExit, match=message):
        tools('taskptq.cli.collect').main(['--root', str(repo)])
