"""Other images: noise, more rows and columns, another number."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.methods.constant_branch.variants import (
    enlarged,
    images_of,
    noisy,
    other_number,
)


class Sample(SimpleNamespace):
    def set_metainfo(self, metainfo):
        vars(self).update(metainfo)


def batch_of(count):
    generator = torch.Generator().manual_seed(0)
    return {
        'inputs': [
            torch.randint(
                256, (3, 8, 12), dtype=torch.uint8, generator=generator
            )
            for _ in range(count)
        ],
        'data_samples': [Sample(img_shape=(8, 12)) for _ in range(count)],
    }


def test_noise_keeps_types_and_ranges():
    batch = batch_of(2)
    other = noisy(batch)
    for before, after in zip(batch['inputs'], other['inputs'], strict=True):
        assert after.dtype == torch.uint8
        assert after.shape == before.shape
        assert not torch.equal(after, before)
    assert torch.equal(noisy(batch)['inputs'][0], other['inputs'][0])
    flat = noisy(torch.full((1, 3, 4, 4), 5.0))
    assert flat.min() < flat.max()


def test_larger_images_tell_their_shape():
    batch = batch_of(2)
    larger = enlarged(batch)
    assert larger['inputs'][0].shape == (3, 40, 76)
    assert larger['data_samples'][0].img_shape == (40, 76)
    assert batch['data_samples'][0].img_shape == (8, 12)
    assert batch['inputs'][0].shape == (3, 8, 12)


@pytest.mark.parametrize(('count', 'other'), [(1, 2), (3, 1)])
def test_another_number(count, other):
    found = other_number(batch_of(count))
    assert len(found['inputs']) == len(found['data_samples']) == other
    images = torch.rand(count, 3, 4, 4)
    assert len(other_number(images)) == other
    assert len(other_number([images])[0]) == other
    with pytest.raises(ValueError, match='cannot be split'):
        other_number('text')


def test_images_are_found():
    images = torch.rand(1, 3, 4, 4)
    assert images_of({'inputs': {'left': images, 'right': images}})
    assert images_of((images, torch.rand(1, 4))) == [images]
    with pytest.raises(ValueError, match='holds no images'):
        images_of({'data_samples': []})
