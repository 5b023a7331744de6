import pytest
import torch

from taskptq.core import MinMaxObserver, MSEObserver, QuantSpec


def observers(spec, num=3, **options):
    made = []
    for i in range(num):
        torch.manual_seed(i)
        observer = MSEObserver(spec, num_bins=64 << i, **options)
        observer.observe(torch.randn(200).abs() * (1 + i) + spec.num_bits / 9)
        made.append(observer)
    return made


@pytest.mark.parametrize('num_bits', [2, 8])
@pytest.mark.parametrize('symmetric', [False, True])
def test_ranges_together_are_those_of_each(num_bits, symmetric):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, signed=True)
    alone = [one.compute_range() for one in observers(spec)]
    together = MSEObserver.compute_ranges(observers(spec))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_many_bins_are_searched_in_parts(monkeypatch):
    spec = QuantSpec(num_bits=4)
    whole = MSEObserver.compute_ranges(observers(spec))
    monkeypatch.setattr('taskptq.core.mse_observer.SEARCHED_TOGETHER', 1)
    assert MSEObserver.compute_ranges(observers(spec)) == whole


def test_other_observers_compute_one_by_one():
    observer = MinMaxObserver(QuantSpec())
    observer.observe(torch.tensor([-1.0, 2.0]))
    ranges = MinMaxObserver.compute_ranges([observer])
    assert ranges == [(torch.tensor([-1.0]), torch.tensor([2.0]))]
