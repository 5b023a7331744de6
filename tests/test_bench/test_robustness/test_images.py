from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS

from taskptq.apis import read_config
from taskptq.bench.robustness.images import NoisyImages, spread
from taskptq.robustness.names import parse_noises


@pytest.fixture
def loader(noisy_task):
    dataset = DATASETS.build(read_config(noisy_task.config).dataset)
    return SimpleNamespace(
        dataset=dataset, collate_fn=pseudo_collate, batch_size=2
    )


def flat(reader):
    return [sample for batch in reader.samples() for sample in batch]


def test_images_are_spread_over_the_set(loader):
    assert spread(164, 30)[-1] > 150
    assert spread(3, 30) == [0, 1, 2]
    images = NoisyImages(loader, max_images=2)
    assert images.places == [(0, 0), (0, 2)]


def test_noises_do_not_stay_in_the_data_set(loader):
    images = NoisyImages(loader)
    clean = flat(images.reader())
    noisy = images.reader(parse_noises('crop=1+resize=opencv-nearest'))
    assert noisy.untouched() == ''
    changed = flat(noisy)
    assert noisy.changed == len(images) == 5
    for before, after in zip(clean, changed, strict=True):
        assert before['data_samples'] == after['data_samples']
        assert not torch.equal(before['inputs'], after['inputs'])
    for before, after in zip(clean, flat(images.reader()), strict=True):
        assert torch.equal(before['inputs'], after['inputs'])


def test_what_changes_no_image_says_so(loader):
    images = NoisyImages(loader)
    found = images.reader(parse_noises('decode=pillow')).untouched()
    assert found == 'no pixel of 5 images comes out otherwise'
    assert images.reader(parse_noises('ceil_mode')).untouched() == ''


def test_labels_are_read_before_the_resize(loader):
    steps = list(loader.dataset.pipeline.transforms)
    images = NoisyImages(loader)
    moved = images.labelled_reader()
    order = [type(s).__name__ for s in moved.leaves[0].pipeline.transforms]
    assert order == [
        'LoadImageFromFile',
        'DrawnAnnotations',
        'Resize',
        'DrawnPack',
    ]
    for one, two in zip(flat(moved), flat(images.reader()), strict=True):
        assert torch.equal(one['inputs'], two['inputs'])
    assert loader.dataset.pipeline.transforms == steps
    loader.dataset.pipeline = Compose([steps[0], *steps[1:2], steps[3]])
    with pytest.raises(ValueError, match='loads no labels'):
        NoisyImages(loader).labelled_reader()
