import pytest

from taskptq.robustness.scores import (
    excess,
    mean_performance,
    relative_performance,
)

FLOAT = {
    'one': (0.36, 0.30, 0.24, 0.16, 0.09),
    'two': (0.39, 0.38, 0.36, 0.33, 0.29),
}
QUANTIZED = {
    'one': (0.31, 0.24, 0.17, 0.09, 0.04),
    'two': (0.35, 0.34, 0.32, 0.28, 0.23),
}


def test_vectors_of_the_benchmark():
    assert mean_performance(FLOAT) == pytest.approx(0.29)
    assert mean_performance(QUANTIZED) == pytest.approx(0.237)
    assert relative_performance(0.29, clean=0.40) == pytest.approx(0.725)
    assert relative_performance(0.237, clean=0.36) == pytest.approx(
        0.6583, abs=1e-4
    )


def test_quantization_loses_more_under_noise():
    found = excess(float_clean=0.40, float_noise=0.29, clean=0.36, noise=0.237)
    assert found.clean == pytest.approx(0.04)
    assert found.noise == pytest.approx(0.053)
    assert found.excess == pytest.approx(0.013)
    assert found.relative_clean == pytest.approx(0.10)
    assert found.relative_noise == pytest.approx(0.1828, abs=1e-4)


def test_nothing_to_divide_by():
    assert relative_performance(0.0, clean=0.0) is None
    found = excess(float_clean=0, float_noise=0, clean=0, noise=0)
    assert found.relative_clean is None
    assert found.relative_noise is None
    with pytest.raises(ValueError, match='at least one corruption'):
        mean_performance({})
    with pytest.raises(ValueError, match='fog has no severity'):
        mean_performance({'fog': []})
