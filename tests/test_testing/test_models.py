import pytest
import torch

from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


@pytest.mark.parametrize('name', TINY_MODELS)
def test_small_seeded_and_in_eval_mode(name):
    state = torch.random.get_rng_state()
    model = tiny_model(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(p.numel() for p in model.parameters()) < 20_000
    assert not model.training
    batch = tiny_batches(name, num_batches=1)[0]
    out = model(batch)
    assert torch.equal(tiny_model(name)(batch), out)
    assert not torch.equal(tiny_model(name, seed=1)(batch), out)
    assert len(out) == len(batch)


@pytest.mark.parametrize('name', TINY_MODELS)
def test_batches_are_seeded(name):
    first, second = tiny_batches(name, batch_size=3)
    assert first.shape == (3, *TINY_MODELS[name].input_shape)
    assert not torch.equal(first, second)
    assert torch.equal(first, tiny_batches(name, batch_size=3)[0])
    assert not torch.equal(first, tiny_batches(name, batch_size=3, seed=1)[0])
