import pytest
import torch

from taskptq.methods.sparsity.masks import (
    exact_count,
    global_masks,
    pattern_mask,
    remove_lowest,
)

A = torch.tensor([0.9, -0.5, 0.3, -0.2, 0.1, 0.05, -0.02, 0.7])
B = torch.tensor([[0.06, -0.04, 0.03], [-0.02, 0.01, 0.05]]).flatten()
B = torch.cat([B, torch.tensor([-0.005, 0.015, 0.07, -0.08, 0.025, 0.035])])


def test_a_tie_at_the_cut_does_not_spoil_the_rate():
    """Removing all up to the 10th smallest, .05, would make it .55."""
    masks = global_masks([A.abs(), B.abs()], 10)
    assert sum(int((~mask).sum()) for mask in masks) == 10
    removed = torch.cat([A[~masks[0]], B[~masks[1]]]).abs()
    assert float(removed.max()) < 0.0501


@pytest.mark.parametrize('rate', [0.0, 0.001, 0.25, 0.5, 0.707, 0.999, 1.0])
def test_any_rate_is_exact_among_equal_weights(rate):
    scores = torch.ones(7, 11, 3)
    count = exact_count(rate, total=scores.numel())
    assert int((~remove_lowest(scores, count)).sum()) == round(rate * 231)


def test_the_lowest_go():
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0))
    mask = remove_lowest(scores, 123)
    assert float(scores[~mask].max()) < float(scores[mask].min())


def test_too_many_are_refused():
    with pytest.raises(ValueError, match='count=4 of 3 weights'):
        remove_lowest(torch.ones(3), 4)


@pytest.mark.parametrize(('kept', 'of'), [(2, 4), (1, 4), (4, 8)])
def test_a_pattern_holds_along_input_channels(kept, of):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 16, 3, 3, generator=generator)
    mask = pattern_mask(scores, kept=kept, of=of)
    # C_in fastest, as sparse matrix units read a convolution
    groups = mask.permute(0, 2, 3, 1).reshape(-1, of)
    assert (groups.sum(dim=1) == kept).all()
    values = scores.permute(0, 2, 3, 1).reshape(-1, of)
    lowest_kept = values.masked_fill(~groups, 9).amin(dim=1)
    assert (values.masked_fill(groups, -1).amax(dim=1) < lowest_kept).all()


def test_a_transposed_weight_has_its_inputs_first():
    scores = torch.rand(8, 5, 2, 2)
    mask = pattern_mask(scores, kept=2, of=4, out_axis=1)
    assert mask.shape == scores.shape
    groups = mask.permute(1, 2, 3, 0).reshape(-1, 4)
    assert (groups.sum(dim=1) == 2).all()


def test_channels_that_do_not_divide_have_no_pattern():
    assert pattern_mask(torch.rand(4, 6), kept=2, of=4) is None
