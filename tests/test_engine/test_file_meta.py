"""What a quantized file records about where it comes from."""

from pathlib import Path

import pytest

from taskptq.engine.file_meta import file_meta, recipe_label


def test_only_what_is_known_is_recorded():
    assert file_meta() == {}
    assert file_meta(
        dataset_meta={'classes': ['a']}, recipe='w8a8', config='/a/b/net.py'
    ) == {
        'dataset_meta': {'classes': ['a']},
        'recipe': 'w8a8',
        'config_name': 'net',
    }


def test_no_key_that_mmengine_runs_as_python():
    assert 'config' not in file_meta(config='net.py')


@pytest.mark.parametrize(
    ('recipe', 'own', 'label'),
    [
        (None, {}, None),
        ('w4a4_qdrop', {}, 'w4a4_qdrop'),
        ('w4a4_qdrop', {'loss': None}, 'w4a4_qdrop'),
        ('w4a4_qdrop', {'loss': {'type': 'X'}}, 'w4a4_qdrop + own settings'),
        ({'qconfig': {}}, {}, None),
        (None, {'qconfig': {}}, None),
        (Path('/home/me/mine.py'), {}, 'mine'),
        (['w8a8', '/home/me/mine.py'], {}, 'w8a8 + mine'),
        (('w8a8', {'loss': None}), {}, 'w8a8 + own settings'),
        (['lane_detection::w4a4_sgf'], {}, 'lane_detection::w4a4_sgf'),
    ],
    ids=range(10),
)
def test_labels_hold_no_paths(recipe, own, label):
    assert recipe_label(recipe, **own) == label
