import pytest
import torch
from torch import nn

from taskptq.reconstruction.image_variety import (
    channels_last,
    kept_in_memory,
    vary_images,
)


def test_images_of_a_batch_vary():
    """Sizes and types stay; all else of the batch is untouched."""
    image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    batch = {'inputs': [image, image], 'data_samples': ['a', 'b']}
    torch.manual_seed(0)
    varied = vary_images(batch, strength=0.3)
    assert varied['data_samples'] == ['a', 'b']
    first, second = varied['inputs']
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    assert not torch.equal(first, image)
    torch.manual_seed(0)
    again = vary_images(batch, strength=0.3)
    assert torch.equal(again['inputs'][1], second)


def test_plain_tensors_vary():
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(vary_images(images, strength=0.1), images)


@pytest.mark.parametrize(
    'batch', [torch.ones(4, 7), torch.randn(2, 16, 8, 8), 'text', {'x': 1}]
)
def test_what_is_no_image_stays(batch):
    assert vary_images(batch, strength=0.5) is batch


def test_a_flat_image_stays_flat():
    """Reflected borders add no edges."""
    image = torch.full((3, 10, 10), 7.0)
    for _ in range(5):
        torch.testing.assert_close(vary_images(image, strength=0.5), image)


class Read(list):
    """Batches that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        Read.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(('max_bytes', 'reads'), [(1 << 20, 4), (10, 7)])
def test_batches_that_fit_are_read_once(max_bytes, reads):
    Read.reads = 0
    batches = Read([torch.ones(2, 3)] * 3)
    kept = kept_in_memory(batches, max_bytes=max_bytes)
    for _ in range(2):
        for number in range(3):
            kept[number]
    assert Read.reads == reads


def test_channels_last_and_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    weight = model[0].weight
    before = weight.detach().clone()
    with channels_last(model, enabled=True):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(weight, before)
    assert weight.is_contiguous()
    with channels_last(model, enabled=False):
        assert weight.is_contiguous()
