"""What the zoo lists, and what it refuses."""

from pathlib import Path

import pytest

from taskptq.bench.zoo.source import read_zoo

DEPLOYED = ['w8a8_mse', 'configs/_base_/deploy/onnxruntime.py']


def test_files_are_named_after_model_recipe_and_data(write_zoo):
    files = write_zoo(files=[{'recipe': 'w8a8'}, {'recipe': DEPLOYED}])
    assert [file.name for file in files] == [
        'net_w8a8_toy',
        'net_w8a8_mse-onnxruntime_toy',
    ]
    assert files[0].folder == Path('configs/tiny/quantized')


def test_the_table_says_the_rest(zoo_files):
    first, second = zoo_files
    assert first.settings() == {
        'config': 'configs/tiny/net_toy.py',
        'checkpoint': 'float.pth',
        'recipe': ['w8a8_mse'],
        'seed': 0,
        'num_images': 16,
        'metric': 'coco/AP',
    }
    assert (first.low_bit, second.low_bit, second.seed) == (False, True, 2)


def test_a_project_is_not_part_of_a_name(write_zoo):
    (file,) = write_zoo(files=[{'recipe': 'sam_detector::w4a4_mse'}])
    assert file.name == 'net_w4a4_mse_toy'


def test_only_chooses_by_name(zoo_files):
    assert [file.name for file in read_zoo(only='w4')] == ['net_w4a8_mse_toy']
    assert read_zoo(only='resnet') == []


def test_an_export_may_take_images_of_every_size(write_zoo):
    plain = {'recipe': 'w8a8_mse', 'onnx': True}
    other = {'recipe': 'w8a8_minmax', 'onnx': True, 'dynamic': True}
    files = write_zoo(files=[plain, other])
    assert [file.dynamic for file in files] == [False, True]


def test_an_export_may_have_more_images(write_zoo):
    (file,) = write_zoo(
        files=[{'recipe': 'w8a8', 'onnx': True, 'export_images': 64}]
    )
    assert file.export_settings() == {'export_images': 64}


def test_without_a_list_the_zoo_is_empty(tmp_path):
    assert read_zoo(tmp_path / 'configs' / 'zoo.yml') == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'speed': 3}, "unknown key 'speed'"),
        ({'files': [{'seed': 1}]}, "lacks the key 'recipe'"),
        ({'files': [{'recipe': 'w8a8', 'bits': 8}]}, "unknown key 'bits'"),
        ({'weights': {'licence': 'MIT'}}, "unknown key 'licence'"),
        ({'files': [{'recipe': 'w8a8'}] * 2}, 'net_w8a8_toy a second time'),
        ({'files': ['w8a8']}, 'must hold keys and values'),
    ],
)
def test_a_wrong_list_is_refused(write_zoo, changes, message):
    with pytest.raises(ValueError, match=message):
        write_zoo(**changes)
