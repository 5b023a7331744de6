"""Entropy of codes."""

import pytest
import torch

from taskptq.core.entropy import code_counts, count_bits


def test_counts_and_bits_of_known_codes():
    # The codes -1 once, 0 six times, 1 twice and 3 once: 15.7095 bit.
    codes = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 1, 1, 3])
    counts = code_counts(codes.reshape(2, 5), bounds=(-2, 3))
    assert counts.tolist() == [0, 1, 6, 2, 0, 1]
    assert count_bits(counts) == pytest.approx(15.7095, abs=1e-4)
    assert code_counts(codes.float(), bounds=(-2, 3)).equal(counts)


def test_one_code_takes_nothing():
    assert count_bits(torch.tensor([0.0, 9.0])) == 0
