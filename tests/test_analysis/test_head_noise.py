"""Noise on regions of heads and swaps of heads, on a decoder by hand."""

import pytest
import torch

from taskptq.analysis.head_noise import measure_inter_head, probe_intra_head


class Peaks:
    """An image's prediction is the sum of its offsets at likely places."""

    def foreground_proxy(self, heads):
        weight = heads['score'].sigmoid()
        return {'score': weight, 'offset': weight, 'whole': torch.ones(())}

    def decode(self, heads, metas):
        keep = heads['score'] > 0
        return (heads['offset'] * keep).flatten(1).sum(1).tolist()


def distance(one, two, metas):
    assert len(one) == len(metas)
    return [abs(a - b) for a, b in zip(one, two, strict=True)]


@pytest.fixture
def heads():
    """Two images with four likely places of sixteen; one without any."""
    score = torch.full((3, 1, 4, 4), -20.0)
    score[:2, :, 1] = 20.0
    torch.manual_seed(1)
    return {
        'score': score,
        'offset': torch.randn(3, 1, 4, 4),
        'whole': torch.randn(3, 5),
    }


METAS = [[{}] * 3]


def probe(heads, **kwargs):
    return probe_intra_head(
        [heads], METAS, adapter=Peaks(), distance=distance, **kwargs
    )


def test_only_the_foreground_of_an_offset_counts(heads):
    found = probe(heads)
    assert list(found) == ['score', 'offset', 'whole']
    assert found['offset']['foreground'] > 0.1
    assert found['offset']['background'] == 0
    assert found['offset']['num_images'] == 2
    # Scores of +-20 do not change sign.
    assert found['score']['foreground'] == found['score']['background'] == 0
    assert found['whole'] == {
        'foreground': None,
        'background': None,
        'num_images': 0,
    }


def test_energy_is_equal_and_as_asked(heads):
    seen = []

    class Seeing(Peaks):
        def decode(self, changed, metas):
            seen.append(changed['offset'] - heads['offset'])
            return super().decode(changed, metas)

    probe_intra_head(
        [{'score': heads['score'], 'offset': heads['offset']}],
        METAS,
        adapter=Seeing(),
        distance=distance,
        level=0.5,
        repeats=1,
    )
    noise = [x for x in seen if bool((x != 0).any())]
    assert len(noise) == 2
    variance = heads['offset'].flatten(1).var(dim=1, correction=0)
    expected = 0.25 * variance * 4
    expected[2] = 0  # no foreground, no noise
    for x in noise:
        torch.testing.assert_close(x.flatten(1).square().sum(1), expected)
    assert bool((noise[0][:2, :, 1] != 0).all())
    assert bool((noise[1][:2, :, 1] == 0).all())


def test_background_noise_makes_false_detections(heads):
    score = heads['score'].clamp(-1, 2)
    found = probe({**heads, 'score': score}, level=1.0)
    assert found['score']['background'] > 0


def test_more_noise_and_the_same_seed(heads):
    one, two = probe(heads), probe(heads)
    assert one == two
    assert probe(heads, seed=1) != one
    more = probe(heads, level=1.0)
    assert more['offset']['foreground'] == pytest.approx(
        2 * one['offset']['foreground'], rel=1e-4
    )
    with pytest.raises(ValueError, match='level=0'):
        probe(heads, level=0)


def test_inter_head(heads):
    quant = {**heads, 'offset': heads['offset'] + 0.25}
    found = measure_inter_head(
        [heads], [quant], METAS, adapter=Peaks(), distance=distance
    )
    # Four places of 0.25 in two images of three.
    assert found['offset'] == pytest.approx(
        {'swap_in': 2 / 3, 'leave_one_out': 2 / 3}, abs=1e-6
    )
    assert found['score'] == {'swap_in': 0, 'leave_one_out': 0}
