import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskptq.core import (
    AffineQuantizer,
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
    QuantSpec,
)
from taskptq.core.observers import channel_rows

SPEC = QuantSpec(num_bits=4)
ALL = [
    KLObserver,
    MSEObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
]
HISTOGRAMS = [KLObserver, MSEObserver, PercentileObserver]


def observed(cls, *batches, spec=SPEC, **kwargs):
    observer = cls(spec, **kwargs)
    for batch in batches:
        observer.observe(torch.as_tensor(batch))
    return observer


def range_of(cls, *batches, **kwargs):
    low, high = observed(cls, *batches, **kwargs).compute_range()
    return low.tolist(), high.tolist()


def quantization_error(x, low, high, *, spec, norm_p=2.0):
    quantizer = AffineQuantizer(spec)
    quantizer.set_bounds(signed=bool((x < 0).any()))
    quantizer.set_range(low, high)
    return (quantizer.fake_quantize(x) - x).abs().pow(norm_p).sum().item()


def test_channel_rows():
    x = torch.arange(24).reshape(2, 3, 4)
    assert channel_rows(x, ch_axis=None).shape == (1, 24)
    assert torch.equal(channel_rows(x, ch_axis=0), x.reshape(2, 12))
    for channel in range(3):
        row = channel_rows(x, ch_axis=1)[channel]
        assert torch.equal(row.sort().values, x[:, channel].flatten())
    assert channel_rows(torch.arange(3), ch_axis=0).shape == (3, 1)


def test_min_max_golden():
    batches = [[-1.0, 2.0], [0.5, 5.0], [-3.0, 1.0]]
    assert range_of(MinMaxObserver, *batches) == ([-3.0], [5.0])
    spec = QuantSpec(ch_axis=0)
    batches = [[[1.0, 2.0], [-1.0, 0.0]], [[0.5, 1.0], [3.0, 4.0]]]
    assert range_of(MinMaxObserver, *batches, spec=spec) == (
        [0.5, -1.0],
        [2.0, 4.0],
    )


def test_moving_average_golden():
    found = range_of(
        MovingAverageMinMaxObserver,
        [-1.0, 1.0],
        [-3.0, 5.0],
        [-2.0, 0.0],
        momentum=0.5,
    )
    assert found == ([-2.0], [1.5])
    with pytest.raises(ValueError, match='momentum=0'):
        MovingAverageMinMaxObserver(SPEC, momentum=0.0)


def test_percentile_golden():
    x = torch.arange(-1000, 1001) / 100
    for percentile in (90.0, 99.0, 99.9):
        (low,), (high,) = range_of(
            PercentileObserver, x, percentile=percentile
        )
        expected = torch.quantile(x, percentile / 100).item()
        assert high == pytest.approx(expected, abs=0.02)
        assert low == pytest.approx(-expected, abs=0.02)
    (low,), (high,) = range_of(PercentileObserver, x, percentile=100)
    assert (low, high) == pytest.approx((-10, 10), abs=0.01)
    with pytest.raises(ValueError, match='percentile=50'):
        PercentileObserver(SPEC, percentile=50)


def test_percentile_leaves_outliers_out():
    x = torch.cat([torch.rand(9999), torch.tensor([1000.0])])
    (_,), (high,) = range_of(PercentileObserver, x, percentile=99.9)
    assert high < 1.5
    low, high = observed(
        PercentileObserver,
        torch.stack([x, 2 * x]),
        spec=QuantSpec(ch_axis=0),
        percentile=99.9,
    ).compute_range()
    assert low.shape == high.shape == (2,)
    assert high[1] == 2 * high[0] < 3


@pytest.mark.parametrize('num_bits', [2, 3, 4])
@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('ch_axis', [None, 0])
def test_mse_is_near_the_best_of_a_fine_grid(num_bits, symmetric, ch_axis):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=ch_axis)
    x = torch.randn(1, 3000)
    x[0, 0] = 8.0
    low, high = observed(MSEObserver, x, spec=spec, norm_p=2.0).compute_range()
    found = quantization_error(x, low, high, spec=spec)
    # Both ends free: an exhaustive search on a 20 x 20 grid.
    steps = torch.linspace(0.05, 1, 20)
    best = min(
        quantization_error(
            x, (x.min() * a).reshape(1), (x.max() * b).reshape(1), spec=spec
        )
        for a in steps
        for b in steps
    )
    assert found <= 1.03 * best
    clipped = quantization_error(
        x, x.min().reshape(1), x.max().reshape(1), spec=spec
    )
    assert found < 0.6 * clipped


def test_mse_histogram_agrees_with_exact_search():
    spec = QuantSpec(num_bits=3)
    x = torch.randn(20_000).relu() * 3
    low, high = observed(MSEObserver, x, spec=spec).compute_range()
    exact = observed(
        MSEObserver, x[None], spec=QuantSpec(num_bits=3, ch_axis=0)
    ).compute_range()
    errors = [
        quantization_error(x, *ends, spec=spec, norm_p=2.4)
        for ends in ((low, high), exact)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_mse_norm_matters():
    x = torch.cat([torch.randn(5000), torch.tensor([10.0, -10.0])])
    spec = QuantSpec(num_bits=3, symmetric=True)
    (_,), (low_p,) = range_of(MSEObserver, x, spec=spec, norm_p=1.0)
    (_,), (high_p,) = range_of(MSEObserver, x, spec=spec, norm_p=6.0)
    assert low_p < 0.7 * high_p


def test_kl_clips_outliers_and_keeps_uniform_data():
    spec = QuantSpec(num_bits=8)
    uniform = torch.rand(50_000)
    (low,), (high,) = range_of(KLObserver, uniform, spec=spec)
    assert low == 0
    assert high > 0.9
    x = torch.cat([torch.randn(50_000), torch.tensor([60.0, -60.0])])
    (low,), (high,) = range_of(KLObserver, x, spec=spec)
    assert low == pytest.approx(-high)
    assert 2 < high < 30


def test_kl_of_weights_is_their_range():
    x = torch.randn(3, 20)
    observer = observed(KLObserver, x, spec=QuantSpec(ch_axis=0))
    low, high = observer.compute_range()
    assert torch.equal(low, x.amin(dim=1))
    assert torch.equal(high, x.amax(dim=1))


@pytest.mark.parametrize('cls', ALL)
@pytest.mark.parametrize('value', [0.0, 5.0, -2.0, 1e-20, 3e30])
def test_constant_tensors(cls, value):
    observer = observed(cls, torch.full((4, 5), value))
    quantizer = AffineQuantizer(SPEC, observer=observer)
    quantizer.calibrate()
    quantizer.enabled = True
    x = torch.tensor([value, 0.0])
    out = quantizer(x)
    assert out[1] == 0
    assert out[0].item() == pytest.approx(value, rel=0.05, abs=1e-12)


@pytest.mark.parametrize('cls', ALL)
@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('ch_axis', [None, 0])
@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('positive', [True, False])
def test_table(cls, symmetric, ch_axis, num_bits, positive):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=ch_axis)
    x = torch.randn(3, 100)
    x = x.abs() if positive else x
    observer = observed(cls, x, spec=spec)
    assert observer.signed is not positive
    low, high = observer.compute_range()
    assert low.shape == high.shape == ((1,) if ch_axis is None else (3,))
    assert (low <= high).all()
    assert (low >= x.min() * 1.3).all() if not positive else True
    quantizer = AffineQuantizer(spec, observer=observer)
    assert quantizer.calibrate()
    out = quantizer.fake_quantize(x)
    assert (out - x).square().mean() < x.square().mean()


@pytest.mark.parametrize('cls', ALL)
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('ch_axis', [None, 0])
def test_non_finite_values_are_refused(cls, bad, ch_axis):
    x = torch.ones(2, 5)
    x[1, 3] = bad
    observer = cls(QuantSpec(ch_axis=ch_axis))
    with pytest.raises(ValueError, match='NaN or infinity'):
        observer.observe(x)
    assert not observer.observed
    assert observer.num_batches == 0


@pytest.mark.parametrize('cls', ALL)
def test_empty_tensors_count_for_nothing(cls):
    observer = observed(cls, torch.empty(0, 4))
    assert not observer.observed
    assert observer.num_batches == 0


@pytest.mark.parametrize('cls', ALL)
def test_half_precision_and_gradients(cls):
    x = torch.randn(50, requires_grad=True)
    observer = observed(cls, x.half(), x.bfloat16(), x)
    low, high = observer.compute_range()
    assert low.dtype == high.dtype == torch.float32
    assert not low.requires_grad
    assert observer.num_batches == 3


def histogram_state(observer):
    return observer.exponent, observer.first_bin, observer.counts.tolist()


@st.composite
def shards(draw):
    count = draw(st.integers(2, 6))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        spread = 10.0 ** draw(st.integers(-12, 6))
        shift = draw(st.sampled_from([0.0, -1.0, 1.0, 1000.0]))
        batch = torch.randn(30, generator=generator) * spread + shift
        kind = draw(st.sampled_from(['any', 'positive', 'constant', 'zero']))
        batches.append(
            {
                'any': batch,
                'positive': batch.relu(),
                'constant': torch.full((30,), shift),
                'zero': torch.zeros(30),
            }[kind]
        )
    return batches


@settings(max_examples=40, deadline=None)
@given(shards(), st.sampled_from([16, 64, 4096]), st.randoms())
def test_histogram_depends_on_no_order(batches, num_bins, random):
    whole = observed(HistogramObserver, torch.cat(batches), num_bins=num_bins)
    shuffled = list(batches)
    random.shuffle(shuffled)
    parts = observed(HistogramObserver, *shuffled, num_bins=num_bins)
    assert histogram_state(parts) == histogram_state(whole)
    assert parts.counts.sum() == 30 * len(batches)
    assert parts.counts.numel() <= num_bins


@settings(max_examples=40, deadline=None)
@given(shards(), st.sampled_from([16, 4096]))
def test_histogram_shards_sum_exactly(batches, num_bins):
    whole = observed(HistogramObserver, torch.cat(batches), num_bins=num_bins)
    ranks = [
        observed(HistogramObserver, *part, num_bins=num_bins)
        for part in (batches[::2], batches[1::2])
    ]
    low = torch.minimum(ranks[0].min_val, ranks[1].min_val)
    high = torch.maximum(ranks[0].max_val, ranks[1].max_val)
    for rank in ranks:
        rank.min_val, rank.max_val = low, high
        rank.rebin(rank.needed_exponent())
        assert rank.exponent == whole.exponent
        assert rank.first_bin == whole.first_bin
    total = ranks[0].counts + ranks[1].counts
    assert torch.equal(total, whole.counts)


def test_histogram_counts_are_those_of_torch():
    x = torch.randn(5000)
    observer = observed(HistogramObserver, x, num_bins=128)
    width = 2.0**observer.exponent
    edges = (
        torch.arange(observer.counts.numel() + 1) + observer.first_bin
    ) * width
    counts = torch.histogram(x, edges).hist
    assert torch.equal(observer.counts.float(), counts)
    assert observer.counts.numel() > 32
    centres, weights = observer.samples()
    assert (weights > 0).all()
    assert weights.sum() == 5000
    assert centres.min() >= x.min()
    assert centres.max() <= x.max()


@pytest.mark.parametrize('cls', HISTOGRAMS)
def test_memory_is_bounded(cls):
    observer = cls(SPEC)
    for step in range(12):
        observer.observe(torch.randn(1000) * 4.0**step)
        assert observer.counts.numel() <= observer.num_bins
    assert observer._rows is None
    size = sum(buffer.numel() for buffer in observer.buffers())
    assert size <= observer.num_bins + 2


def test_first_batch_of_zeros_then_values():
    x = torch.randn(1000)
    for cls in HISTOGRAMS:
        ends = range_of(cls, torch.zeros(1000), x)
        assert ends[0][0] < 0 < ends[1][0]


def test_base_and_declared_reductions():
    for cls in [Observer, *ALL, HistogramObserver]:
        observer = cls(SPEC)
        for name, kind in cls.reductions.items():
            assert isinstance(getattr(observer, name), torch.Tensor)
            assert kind in ('min', 'max', 'mean', 'sum', 'histogram')
    with pytest.raises(NotImplementedError):
        Observer(SPEC).observe(torch.ones(3))
