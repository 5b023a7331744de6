"""Targets over several tables: means of those that were measured."""

from pathlib import Path

import pytest
import yaml

from taskptq.bench.results import Summary
from taskptq.bench.table import Table
from taskptq.bench.target_sets import (
    Member,
    average,
    describe_set,
    evaluate_set,
    needed_by,
    read_target_set,
)


def member(reference, bits='w4a4', **methods):
    table = Table(
        path=Path('a.table.yml'),
        model='m',
        dataset='d',
        config='c',
        checkpoint='p',
        metric='AP',
        groups=[],
        discriminating=bits,
    )
    rows = [
        dict(method=method, bits=bits, seed=seed, value=value)
        for method, value in methods.items()
        for seed in (0, 1)
    ]
    results = {'float': {'value': reference}, 'rows': rows}
    return Member(table=table, results=results, bits=bits)


TARGET = dict(name='higher', method='qdrop', above='mse')


def test_means_of_the_tables_that_have_both():
    members = [
        member(0.5, mse=0.2, qdrop=0.3),
        member(0.5, mse=0.3, qdrop=0.25),
    ]
    found = evaluate_set(TARGET, members)
    assert found['status'] == 'pass'
    assert (found['tables'], found['of_tables']) == (2, 2)
    found = evaluate_set(TARGET, [*members, member(0.5, mse=0.4)])
    assert found['status'] == 'partial'
    assert (found['tables'], found['of_tables']) == (2, 3)
    assert 'mean over 2 of 3 models' in describe_set(found)


def test_nothing_measured_is_no_mean():
    empty = Member(table=member(0.5).table, results=None, bits='w4a4')
    found = evaluate_set(TARGET, [empty])
    assert found['tables'] == 0
    assert 'mean over' not in describe_set(found)
    assert average([None, None]) is None


def test_average_counts_the_fewest_seeds():
    one = Summary(mean=1.0, spread=0.0, num_seeds=1, rows=[])
    two = Summary(mean=2.0, spread=1.0, num_seeds=3, rows=[])
    found = average([one, None, two])
    assert (found.mean, found.spread, found.num_seeds) == (1.5, 0.5, 1)


@pytest.mark.parametrize(
    ('target', 'methods'),
    [
        (TARGET, ['mse']),
        (dict(method='a', min_value=0.5), []),
        (dict(method='a', min_share=0.5), ['float']),
    ],
)
def test_methods_that_a_target_needs(target, methods):
    assert needed_by(target) == methods


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (dict(tables=['a']), 'targets'),
        (
            dict(
                tables=['a'],
                targets=[dict(name='x', method=['a', 'b'])],
            ),
            "'x'",
        ),
    ],
)
def test_files_that_cannot_be(tmp_path, content, said):
    path = tmp_path / 'all.targets.yml'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=said):
        read_target_set(path)


def test_tables_with_and_without_bits(tmp_path):
    path = tmp_path / 'all.targets.yml'
    path.write_text(yaml.safe_dump(dict(tables=['a', 'b'], targets=[])))
    found = read_target_set(path)
    assert found.name == 'all'
    assert found.tables == {'a': None, 'b': None}
