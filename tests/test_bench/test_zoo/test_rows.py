"""Rows of tables name the file that was made as they were."""

import pytest

from taskptq.bench.zoo.rows import name_checkpoint


def row_of(recipe='w8a8_mse', **changes):
    row = {'recipe': recipe, 'seed': 0, 'value': 0.2, 'checkpoint': None}
    return {**row, 'metrics': {'coco/AP': 0.284}, **changes}


RECORD = {'value': 0.2844, 'committed': True, 'file': 'a/b.pth'}


def test_the_row_of_the_recipe_names_the_file(zoo_files):
    rows = [row_of('w4a4_mse'), row_of(), row_of(seed=1)]
    assert name_checkpoint({'rows': rows}, zoo_files[0], RECORD)
    assert [row['checkpoint'] for row in rows] == [None, 'a/b.pth', None]


@pytest.mark.parametrize(
    ('row', 'record'),
    [
        (row_of(metrics={'coco/AP': 0.29}, checkpoint='old.pth'), RECORD),
        (row_of(checkpoint='old.pth'), {**RECORD, 'committed': False}),
    ],
)
def test_other_digits_and_absent_files_are_not_named(zoo_files, row, record):
    assert not name_checkpoint({'rows': [row]}, zoo_files[0], record)
    assert row['checkpoint'] is None


def test_without_the_metric_the_value_counts(zoo_files):
    row = row_of(metrics={}, value=0.2841)
    assert name_checkpoint({'rows': [row]}, zoo_files[0], RECORD)


def test_a_plain_name_is_the_method_that_it_stands_for(write_zoo):
    (file,) = write_zoo(files=[{'recipe': 'w8a8'}])
    rows = [
        row_of('w8a8_mixed'),
        row_of('w8a8_mse'),
        row_of('absent::w8a8_mse'),
        {'seed': 0},
    ]
    assert name_checkpoint({'rows': rows}, file, RECORD)
    assert rows[0]['checkpoint'] == 'a/b.pth'
    assert rows[1]['checkpoint'] is None
