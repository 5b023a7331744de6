"""Counts, entropies, integer tables and the parts that share them."""

import numpy as np
import pytest

from taskptq.export.codecs.histograms import (
    entropy_bits,
    frequencies,
    group_parts,
    histograms,
    read_table,
    write_table,
)
from taskptq.export.codecs.registry import CodecError


def test_entropy_of_known_counts():
    # 80, 10, 8 and 2 of 100: .9941 bit each.
    bits = entropy_bits(np.array([[80, 10, 8, 2], [1, 0, 0, 0], [1, 1, 1, 1]]))
    np.testing.assert_allclose(bits, [99.41, 0, 8], atol=0.005)
    # 1, 6, 2 and 1 of 10: 15.7095 bit together.
    assert entropy_bits(np.array([1, 6, 2, 1])) == pytest.approx(
        15.7095, abs=1e-4
    )


@pytest.mark.parametrize('precision', [4, 12, 14])
@pytest.mark.parametrize(
    'counts',
    [[1], [0, 7], [1000000, 1, 1, 1], [3, 3, 3], [1] * 15, [5, 0, 0, 90, 2]],
)
def test_frequencies_fill_the_table(counts, precision):
    counts = np.array(counts)
    table = frequencies(counts, precision=precision)
    assert table.sum() == 2**precision
    assert ((table > 0) == (counts > 0)).all()


def test_frequencies_cost_little_over_the_entropy():
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.binomial(15, 0.4, 100_000), minlength=16)
    table = frequencies(counts, precision=12)
    used = counts > 0
    coded = -(counts[used] * np.log2(table[used] / 4096)).sum()
    assert coded < 1.002 * entropy_bits(counts)


def test_tables_are_written_exactly():
    counts = np.array([0, 0, 5, 90_000, 1, 0, 300, 0])
    table = frequencies(counts, precision=12)
    data = write_table(table)
    back, end = read_table(b'x' + data, 1, num_symbols=8, precision=12)
    np.testing.assert_array_equal(back, table)
    assert end == 1 + len(data)
    with pytest.raises(CodecError, match='sum'):
        read_table(data[:-1] + b'\1', 0, num_symbols=8, precision=12)


def test_parts_share_a_table_only_if_that_is_shorter():
    rng = np.random.default_rng(0)
    narrow = [rng.binomial(15, 0.1, 4000) for _ in range(3)]
    wide = [rng.integers(0, 16, 4000) for _ in range(2)]
    parts = [narrow[0], wide[0], narrow[1], wide[1], narrow[2]]
    codes = np.concatenate(parts).astype(np.uint8)
    counts = histograms(codes, parts=(4000,) * 5, num_symbols=16)
    assert counts.sum(1).tolist() == [4000] * 5
    chosen = group_parts(counts)
    assert chosen[0] == chosen[2] == chosen[4]
    assert chosen[1] == chosen[3] != chosen[0]
    assert set(chosen) == {0, 1}


def test_there_are_at_most_64_tables():
    counts = 100_000 * np.eye(200, dtype=np.int64)
    assert max(group_parts(counts)) == 63
