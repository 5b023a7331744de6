"""Pieces of tensors."""

import pytest
import torch

from taskptq.core.pieces import is_dense, pieces, row_pieces


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('taskptq.core.pieces.piece_size', lambda device: 8)


@pytest.mark.usefixtures('small')
@pytest.mark.parametrize('shape', [(), (0,), (5,), (17,), (2, 3, 2, 3)])
@pytest.mark.parametrize('layout', ['plain', 'images'])
def test_pieces_visit_each_element_once(shape, layout):
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    if layout == 'images' and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    out = torch.zeros_like(x)
    sizes = []
    for part, written in pieces(x, out):
        written.add_(part)
        sizes.append(part.numel())
    assert torch.equal(out, x)
    assert max(sizes, default=0) <= 8
    assert len(sizes) == max(1, -(-x.numel() // 8))


@pytest.mark.usefixtures('small')
@pytest.mark.parametrize('scale_shape', [(6, 1, 1), (1, 2, 1), (1, 1, 1), ()])
@pytest.mark.parametrize('rows', [1, 3, 6])
def test_rows_are_visited_once_with_their_scales(rows, scale_shape):
    x = torch.randn(6, 2, 3)[:rows]
    scale = torch.randn(scale_shape)
    scale = scale[:rows] if scale_shape[:1] == (6,) else scale
    out = torch.zeros_like(x)
    visits = 0
    for part, size, written in row_pieces(x, scale, out):
        written.add_(part * size)
        visits += 1
    assert torch.equal(out, x * scale)
    assert visits == rows  # of six elements: two are more than eight


@pytest.mark.usefixtures('small')
def test_one_long_row_is_one_piece():
    """As the weight of a layer with one output is."""
    x = torch.randn(1, 20)
    assert [one.shape for one, _ in row_pieces(x, torch.ones(1, 1))] == [
        (1, 20)
    ]


def test_layouts_without_holes_are_dense():
    image = torch.zeros(2, 3, 4, 5)
    assert is_dense(image)
    assert is_dense(image.contiguous(memory_format=torch.channels_last))
    assert not is_dense(image[..., ::2])
    assert not is_dense(image.transpose(0, 1))
    assert not is_dense(torch.zeros(3).expand(2, 3))
