import torch

from taskptq.analysis.sensitivity.points import (
    head_batches,
    readers_of,
    small_batches,
    view_points,
)


def test_parts_of_batches():
    batches = [torch.zeros(5, 3), torch.zeros(2, 3)]
    assert [len(b) for b in small_batches(batches, size=2)] == [2, 2, 1, 2]
    images = {'inputs': [torch.zeros(3)] * 3, 'data_samples': [1, 2, 3]}
    parts = list(small_batches([images], size=2))
    assert [part['data_samples'] for part in parts] == [[1, 2], [3]]


def test_arguments_are_no_images():
    arguments = (torch.zeros(2, 3), torch.zeros(5))
    (whole,) = small_batches([arguments], size=1)
    assert whole is arguments


def test_first_batches_are_read_once():
    read = iter([torch.zeros(2), torch.zeros(2), torch.zeros(2)])
    assert len(head_batches(read, num_images=3)) == 2
    assert len(list(read)) == 1


def test_points_join_what_is_known(wild, batches, adapter):
    view = view_points(
        wild, batches, forward=adapter.forward_heads, adapter=adapter
    )
    name = 'depthwise.input_quantizer'
    (point,) = view.points({name: {8: 0.5}, 'unknown': {8: 1.0}})
    assert point.loss == 0.5
    assert point.macs == view.facts[name].macs
    # The small channels are read alone.
    assert point.effective_bits < (point.sqnr_db - 1.76) / 6.02 - 2
    assert list(view.grids(name, candidates=[4])) == [4, 8]


def test_readers_by_input_quantizer(wild):
    assert set(readers_of(wild)) == {
        f'{name}.input_quantizer'
        for name in ('stem', 'depthwise', 'pointwise', 'spatial', 'head')
    }
