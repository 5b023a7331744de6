"""Which memory holds what was computed from the images."""

import torch

from taskptq.methods.constant_branch.reach import ImageReach, tensors_in


def test_values_are_followed_and_shapes_are_not():
    image, other = torch.rand(2, 3), torch.rand(2, 3)
    with ImageReach([image]) as reach:
        double = image * 2
        row = double[0]
        mask = torch.zeros_like(image)
        new = image.new_ones(2)
        free = other + 1
        buffer = torch.zeros(4, 3)
        buffer[:2] = image
        part = buffer[3]
    assert double in reach
    assert row in reach
    assert buffer in reach
    assert part in reach
    for tensor in (mask, new, free, other):
        assert tensor not in reach


def test_memory_that_is_given_anew_is_free():
    image = torch.rand(1000)
    with ImageReach([image]) as reach:
        for _ in range(20):
            used = image * 2
            del used
            assert torch.rand(1000) not in reach
            assert torch.tensor([1.0] * 1000) not in reach


def test_tensors_are_found_in_trees():
    a, b = torch.ones(1), torch.zeros(1)
    assert list(tensors_in({'x': [a, (None, b)], 'y': 3})) == [a, b]
