"""Datasets for calibration: without wrappers, with other transforms."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.datasets import (
    build_dataset,
    image_paths,
    leaf_datasets,
    loader_dataset,
    loader_pipeline,
    named_files,
    pipeline_steps,
    read_sample,
    reads_labels,
    step_name,
    with_pipeline,
    works_on,
)


@pytest.fixture
def source(tiny_config):
    return EvaluationSource.from_config(tiny_config.test_dataloader)


@pytest.fixture
def build(tiny_config, source):

    def make(**settings):
        return build_calibration(
            CalibrationConfig.from_dict(settings),
            source=source,
            default=tiny_config.train_dataloader.dataset,
        )

    return make


def images_of(batches):
    return [
        batches.datasets[part].get_data_info(index)['img_path']
        for part, index in batches.chosen
    ]


def test_wrappers_are_taken_off_unbuilt(tiny_config, build):
    inner = tiny_config.train_dataloader.dataset
    other = dict(type='TinyDataset', first=50, length=3, pipeline=[])
    wrapped = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='TinyMix', dataset=inner, pipeline=[]),
            dict(type='ClassBalancedDataset', dataset=other),
        ],
    )
    assert len(leaf_datasets(wrapped)) == 2
    batches = build(num_images=27, dataset=wrapped)
    assert 'tiny/51.png' in images_of(batches)


def test_built_datasets_are_unwrapped_and_left_alone(tiny_config, build):
    from mmengine.registry import DATASETS

    dataset = DATASETS.build(tiny_config.train_dataloader.dataset)
    batches = build(num_images=24, dataset=dataset)
    assert len(batches[0]['inputs']) == 4
    assert len(dataset.dataset.pipeline.transforms) == 1


class LoadPanopticAnnotations:
    """Reads labels, by its name."""


@pytest.mark.parametrize(
    ('step', 'name', 'labels'),
    [
        (dict(type='mmdet.LoadAnnotations'), 'LoadAnnotations', True),
        (dict(type='Resize', scale=3), 'Resize', False),
        (LoadPanopticAnnotations, 'LoadPanopticAnnotations', True),
        (LoadPanopticAnnotations(), 'LoadPanopticAnnotations', True),
        (len, 'builtin_function_or_method', False),
    ],
)
def test_steps_by_name(step, name, labels):
    assert step_name(step) == name
    assert reads_labels(step) is labels


class Listed:
    """A data set whose images may be several files, or links."""

    def __init__(self, *paths, pipeline=None):
        self.paths = paths
        if pipeline is not None:
            self.pipeline = pipeline

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        if not self.paths[index]:
            raise KeyError('img')
        return self.paths[index]

    def get_data_info(self, index):
        return {'img_path': self.paths[index]}


def test_paths_see_through_links(tmp_path):
    image, link = tmp_path / 'a.png', tmp_path / 'b.png'
    image.touch()
    link.symlink_to(image)
    found = image_paths(
        dict(datasets=[Listed(str(link)), Listed(str(image), None)])
    )
    assert found == {str(image)}
    (pair,) = image_paths(Listed([str(link), str(image)]))
    assert pair == f'{image}|{image}'


def test_pipelines_are_swapped_on_a_copy():
    dataset = Listed('a', pipeline=[len])
    other = with_pipeline(dataset, [str.upper])
    assert pipeline_steps(other) == [str.upper]
    assert pipeline_steps(dataset) == [len]
    assert with_pipeline(dataset, None) is dataset
    assert pipeline_steps(Listed('a')) is None


def test_what_a_loader_reads():
    dataset = Listed('a')
    given = dict(dataset=dict(dataset=dict(pipeline=[1])))
    for loader, found, steps in (
        (None, None, None),
        (given, given['dataset'], [1]),
        (SimpleNamespace(dataset=dataset), dataset, None),
    ):
        assert loader_dataset(loader) is found
        assert loader_pipeline(loader) == steps


class Absent(Listed):
    """A data set whose annotations do not exist."""

    def full_init(self):
        (Path(self.paths[0]) / 'none.json').read_text()


def test_missing_files_are_named_with_the_settings(tmp_path):
    words = r'Absent finds no .*none\.json: check its data_root, ann_file'
    with pytest.raises(FileNotFoundError, match=words):
        build_dataset(Absent(str(tmp_path)))
    words = 'CocoDataset finds no here.jpg: check'
    with (
        pytest.raises(FileNotFoundError, match=words),
        named_files(dict(type='mmdet.CocoDataset')),
    ):
        raise FileNotFoundError('here.jpg')


def test_samples_that_fail_are_no_samples():
    dataset = Listed('a', '')
    assert read_sample(dataset, 0) == 'a'
    assert works_on(dataset, 0)
    assert not works_on(dataset, 1)
