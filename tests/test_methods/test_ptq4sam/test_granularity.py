import pytest
import torch

from taskptq.methods.ptq4sam.granularity import (
    UNIFORM,
    Granularity,
    OutputErrors,
    grid_codes,
    grid_values,
    search_granularity,
)

# One query, three keys; the largest weight meets a value of zero.
ATTENTION = torch.tensor([0.9, 0.3, 0.15]).view(1, 1, 1, 3)
VALUE = torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 3, 1)


def errors_of(pieces, *, num_levels=4, per_head=False, norm_p=2.4):
    return OutputErrors(
        pieces, per_head=per_head, num_levels=num_levels, norm_p=norm_p
    )


@pytest.mark.parametrize(
    ('tau', 'scale', 'output'),
    [
        # codes 0, round(1.585) = 2, round(2.585) = 3
        (1, 0.9, 0.9 / 4 + 0.9 / 8),
        # codes 0, round(3.17) = 3, round(5.17) = 5: beyond 2 bits
        (2, 0.9, 0.9 * 2**-1.5),
        # codes 0 (0.9 is clipped), 1, 2: exact
        (1, 0.6, 0.45),
        (2, 0.3, 0.45),
        # codes 0, 0, 4: the last one is beyond 2 bits
        (4, 0.3, 0.3),
    ],
)
@pytest.mark.parametrize('norm_p', [2.0, 2.4])
def test_error_of_the_power_grid_by_hand(tau, scale, output, norm_p):
    errors = errors_of([(ATTENTION, VALUE)], norm_p=norm_p)
    found = errors.power(torch.tensor([scale]), tau=tau)
    assert found.item() == pytest.approx(
        abs(output - 0.45) ** norm_p, rel=1e-4, abs=1e-9
    )
    assert errors.relative(found) == pytest.approx(
        abs(output - 0.45) / 0.45, rel=1e-4, abs=1e-3
    )


def test_error_of_the_uniform_grid_by_hand():
    errors = errors_of([(ATTENTION, VALUE)])
    # steps of 0.4: codes 2, 1 and 0
    found = errors.uniform(torch.tensor([1.2]))
    assert errors.relative(found) == pytest.approx(0.05 / 0.45, rel=1e-4)


def test_a_softmax_alone_is_compared_to_itself():
    errors = errors_of([(ATTENTION, None)], norm_p=2.0)
    found = errors.power(torch.tensor([0.9]), tau=1)
    expected = (0.3 - 0.225) ** 2 + (0.15 - 0.1125) ** 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('tau', [1, 2, 4])
def test_finds_the_grid_that_is_exact(tau):
    # Powers of 2^(-1 / tau) as far as 3 bits go: only this tau has them all.
    values = 0.5 * 2 ** (-torch.arange(8.0) / tau)
    attention = values.view(1, 1, 1, 8)
    identity = torch.eye(8).view(1, 1, 8, 8)
    found = search_granularity(
        errors_of([(attention, identity)], num_levels=8),
        max_val=torch.tensor([0.5]),
    )
    assert found.tau.tolist() == [tau]
    assert found.tau.dtype == torch.int32
    assert found.scale.item() == pytest.approx(0.5, rel=1e-4)
    assert found.error == pytest.approx(0, abs=1e-5)
    if tau > 1:
        assert found.error_tau1 > 0.05
    assert found.error_uniform > 0.01


def test_finds_a_scale_below_the_maximum():
    found = search_granularity(
        errors_of([(ATTENTION, VALUE)]), max_val=torch.tensor([0.9])
    )
    # 0.3 and 0.15 are exact at 0.6, 0.3 (tau 1), and less at 0.9.
    octaves = torch.log2(found.scale / 0.3).item()
    assert octaves == pytest.approx(round(octaves), abs=0.02)
    assert found.error < 0.01
    assert found.error < 0.25


def test_equal_errors_take_the_smaller_tau():
    attention = torch.tensor([0.5]).view(1, 1, 1, 1)
    found = search_granularity(
        errors_of([(attention, None)]),
        max_val=torch.tensor([0.5]),
        taus=(4, 2),
    )
    assert found.tau.tolist() == [2]
    assert found.error == 0


def test_scale_stays_in_the_published_range():
    attention = torch.softmax(4 * torch.randn(2, 1, 20, 30), -1)
    value = torch.randn(2, 1, 30, 5)
    high = attention.amax((1, 2, 3))
    found = search_granularity(
        errors_of([(attention, value)], num_levels=16, per_head=True),
        max_val=high,
    )
    assert (found.scale <= high).all()
    assert (found.scale >= torch.clamp(0.01 * high, max=0.1)).all()


@pytest.mark.parametrize('num_levels', [8, 16])
@pytest.mark.parametrize('keys', [20, 400])
def test_errors_are_the_least_of_each_grid(num_levels, keys):
    attention = torch.softmax(2 * torch.randn(3, 2, 30, keys), -1)
    errors = errors_of(
        [(attention, torch.randn(3, 2, keys, 8))], num_levels=num_levels
    )
    high = attention.amax().reshape(1)
    found = search_granularity(errors, max_val=high)
    scan = high * torch.logspace(-2, 0, 60)[:, None]
    least = {
        tau: min(errors.relative(errors.power(s, tau=tau)) for s in scan)
        for tau in (1, 2, 4)
    }
    assert 0 < found.error <= 1.001 * min(least.values())
    assert found.error <= found.error_tau1 <= 1.001 * least[1]
    uniform = min(errors.relative(errors.uniform(s)) for s in scan)
    assert found.error_uniform <= 1.001 * uniform
    assert found.error_uniform >= 0.9 * uniform
    if keys == 400:
        # Small weights that add up are what the power grid is for.
        assert found.error < found.error_uniform


def test_heads_are_searched_apart():
    rows = torch.stack([0.5 * 2 ** (-torch.arange(8.0) / t) for t in (1, 4)])
    attention, identity = rows.view(2, 1, 1, 8), torch.eye(8)
    value = identity.expand(2, 1, 8, 8)
    found = search_granularity(
        errors_of([(attention, value)], num_levels=8, per_head=True),
        max_val=torch.tensor([0.5, 0.5]),
    )
    assert found.tau.tolist() == [1, 4]
    assert found.error == pytest.approx(0, abs=1e-5)
    together = search_granularity(
        errors_of([(attention, value)], num_levels=8),
        max_val=torch.tensor([0.5]),
    )
    assert together.error > 0.01
    plain = found.to_dict()
    assert plain['tau'] == [1, 4]
    assert plain['scale'] == pytest.approx([0.5, 0.5], rel=1e-4)
    assert set(plain) == {
        'tau',
        'scale',
        'error',
        'error_tau1',
        'error_uniform',
    }


def test_pieces_of_different_sizes_add_up():
    attention = torch.softmax(torch.randn(2, 3, 4, 6), -1)
    value = torch.randn(2, 3, 6, 5)
    whole = errors_of([(attention, value)], per_head=True)
    parts = errors_of(
        [
            (attention[:, :1], value[:, :1]),
            (attention[:, 1:, :, :], value[:, 1:]),
        ],
        per_head=True,
    )
    scale = torch.tensor([0.3, 0.4])
    torch.testing.assert_close(
        parts.power(scale, tau=2), whole.power(scale, tau=2)
    )
    torch.testing.assert_close(parts.uniform(scale), whole.uniform(scale))


def test_uniform_granularity_is_the_uniform_grid() -> None:
    """A granularity of 0 quantizes as an unsigned uniform grid does."""
    x = torch.linspace(0, 1, 97).reshape(1, 1, 1, -1)
    scale = torch.tensor(0.75)
    tau = torch.tensor(UNIFORM)
    codes = grid_codes(x, scale=scale, tau=tau, num_levels=8)
    values = grid_values(codes, scale=scale, tau=tau, num_levels=8)
    expected = (x * 7 / 0.75).round().clamp(max=7) * 0.75 / 7
    torch.testing.assert_close(values, expected)
    assert codes.min() == 0
    assert codes.max() == 7


def test_heads_mix_grids() -> None:
    """Each head is quantized on its own kind of grid."""
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.9, 0.8, 0.7]).reshape(-1, 1, 1)
    tau = torch.tensor([2, UNIFORM, 1]).reshape(-1, 1, 1)

    def quantized(head: slice) -> torch.Tensor:
        part = {'scale': scale[head], 'tau': tau[head], 'num_levels': 16}
        return grid_values(grid_codes(x[:, head], **part), **part)

    together = quantized(slice(None))
    for head in range(3):
        alone = quantized(slice(head, head + 1))
        torch.testing.assert_close(together[:, head : head + 1], alone)


def test_search_takes_the_uniform_grid_where_it_is_better() -> None:
    """Few keys give even weights, many a steep few."""
    generator = torch.Generator().manual_seed(0)

    def best(num_keys: int, gain: float) -> Granularity:
        logits = gain * torch.randn(1, 1, 64, num_keys, generator=generator)
        value = torch.randn(1, 1, num_keys, 8, generator=generator)
        attention = logits.softmax(dim=-1)
        errors = OutputErrors(
            [(attention, value)], per_head=False, num_levels=16, norm_p=2.4
        )
        return search_granularity(
            errors, max_val=attention.amax()[None], taus=(UNIFORM, 1, 2, 4)
        )

    few, many = best(4, 0.5), best(256, 2.0)
    assert few.tau.tolist() == [UNIFORM]
    assert few.error == few.error_uniform < few.error_tau1
    assert many.tau.item() in (1, 2, 4)
    assert many.error < many.error_uniform


def test_values_of_zero_have_no_error() -> None:
    attention = torch.rand(1, 1, 4, 5).softmax(-1)
    errors = errors_of([(attention, torch.zeros(1, 1, 5, 3))])
    found = search_granularity(errors, max_val=attention.amax().reshape(1))
    assert found.to_dict()['error'] == 0
    assert found.error_uniform == found.error_tau1 == 0
