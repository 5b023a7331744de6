import pytest
import torch
from torch import nn
from wild_net import PlainAdapter

from taskptq.methods.sparsity.learned import learn_masks
from taskptq.methods.sparsity.prunable import find_prunable
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.sparsity import SparsityConfig
from tests.test_methods.test_sparsity.conftest import FLOAT


class TwoPaths(nn.Module):
    """Two layers alike; the output hardly depends on the second."""

    def __init__(self):
        super().__init__()
        self.much = nn.Linear(32, 32)
        self.little = nn.Linear(32, 32)
        self.little.load_state_dict(self.much.state_dict())

    def forward(self, x):
        return self.much(x) + 0.01 * self.little(x)


@pytest.fixture
def paths():
    torch.manual_seed(0)
    model = TwoPaths().eval()
    prepare(model, QConfig.from_dict(FLOAT))
    return model, [torch.randn(16, 32) for _ in range(3)]


def learn(model, batches, **settings):
    settings = {'rate': 0.6, 'steps': 40, 'batch_size': 16, **settings}
    config = SparsityConfig(allocation='learned', **settings)
    prunable, _ = find_prunable(model, config)
    return learn_masks(
        model, prunable, batches, config, adapter=PlainAdapter()
    )


def test_zeros_go_where_they_cost_nothing(paths):
    learned = learn(*paths, threshold_lr=0.1)
    much, little = (float((~m).float().mean()) for m in learned.masks)
    assert much < 0.5 < 0.7 < little
    assert learned.thresholds[0] < learned.thresholds[1]
    assert learned.loss_end < 0.5 * learned.loss_start


def test_the_rate_is_exact_at_every_step(paths):
    learned = learn(*paths, rate=0.333)
    count = round(0.333 * 2 * 32 * 32)
    assert set(learned.rates) == {count / (2 * 32 * 32)}
    assert sum(int((~mask).sum()) for mask in learned.masks) == count


def test_the_model_is_left_as_it_was(paths):
    model, batches = paths
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        out = model(batches[0])
    state = torch.get_rng_state()
    learn(model, batches, steps=3)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in model.parameters())
    for _, module in quant_modules(model):
        assert not module.roundings
        assert not module.corrected_biases
    with torch.no_grad():
        assert torch.equal(model(batches[0]), out)


def test_one_seed_gives_one_result(paths):
    first, second = (learn(*paths, steps=5) for _ in range(2))
    assert first.thresholds == second.thresholds
