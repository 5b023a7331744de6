import pytest
import torch
from wild_net import PlainAdapter

from taskptq.methods.output_error.output_loss import OutputLoss, group_of


class Weighing(PlainAdapter):
    def output_weights(self, heads):
        return {'a.0': torch.tensor([1.0, 0.0, 1.0, 1.0])}


def test_relative_noise_of_the_outputs():
    """Noise of a tenth of the deviation is 0.01, whatever the scale."""
    heads = {'output': torch.randn(400, 3) * 50 + 7}
    loss = OutputLoss(PlainAdapter(), [heads], num_images=400)
    std = heads['output'].std(dim=0, correction=0).square().mean().sqrt()
    noisy = {'output': heads['output'] + 0.1 * std}
    assert loss.between(noisy, heads) / 400 == pytest.approx(0.01, rel=1e-4)
    assert loss.between(heads, heads) == 0


def test_kinds_of_outputs_count_alike():
    heads = {
        '0.0': torch.randn(100, 4),
        '0.1': torch.randn(100, 4),
        '1.0': torch.randn(100, 4) * 1000,
    }
    loss = OutputLoss(PlainAdapter(), [heads], num_images=100)
    assert set(loss.signals) == {'0', '1'}
    wrong = {name: torch.zeros_like(head) for name, head in heads.items()}
    # All signal lost in both kinds.
    assert loss.between(wrong, heads) / 100 == pytest.approx(1, rel=0.05)


def test_values_without_weight_are_free():
    heads = {'a.0': torch.randn(10, 4), 'other': torch.randn(3)}
    loss = OutputLoss(Weighing(), [heads], num_images=10)
    changed = heads['a.0'].clone()
    changed[:, 1] += 100
    assert loss.between({'a.0': changed}, heads) == 0


def test_outputs_without_signal_are_refused():
    heads = {'output': torch.ones(5, 3)}
    with pytest.raises(ValueError, match='no output of the float model'):
        OutputLoss(PlainAdapter(), [heads], num_images=5)


def test_probes_estimate_the_loss():
    heads = {'output': torch.randn(20, 6)}
    loss = OutputLoss(PlainAdapter(), [heads], num_images=20)
    error = torch.randn(20, 6)
    exact = loss.between({'output': heads['output'] + error}, heads)
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(3000):
        x = heads['output'].clone().requires_grad_(True)
        loss.probe({'output': x}, generator=generator).backward()
        squares.append(float((x.grad * error).sum()) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(exact, rel=0.1)


def test_group_of_levels():
    assert group_of('1.0.2') == '1'
    assert group_of('mask') == 'mask'
