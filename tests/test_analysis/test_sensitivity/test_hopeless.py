import logging

import pytest
import torch
from wild_net import WildNet, prepared, switches

from taskptq.analysis.sensitivity.hopeless import (
    find_hopeless,
    hopeless_warnings,
    warn_hopeless,
)
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model

WILD = 'depthwise.input_quantizer'


def forward(model, batch):
    return model(batch)


def test_the_wild_tensor_is_named_with_its_cure(wild, batches, caplog):
    before = switches(wild)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        (text,) = warn_hopeless(wild, batches, forward=forward)
    assert text in caplog.text
    assert text.startswith('1 tensor cannot be held')
    assert WILD in text
    assert 'activation=dict(per_channel=True)' in text
    assert switches(wild) == before


def test_the_cure_cures(batches):
    model = prepared(WildNet(), batches, activation={'per_channel': True})
    assert find_hopeless(model, batches, forward=forward) == []


@pytest.mark.parametrize('name', TINY_MODELS)
def test_healthy_models_are_silent(name):
    batches = tiny_batches(name)
    model = prepared(tiny_model(name), batches)
    assert warn_hopeless(model, batches, forward=forward) == []


def test_few_bits_are_expected_to_be_noisy(batches):
    model = prepared(WildNet(), batches, activation={'num_bits': 4})
    assert find_hopeless(model, batches, forward=forward) == []


def test_only_the_first_image_runs(wild):
    sizes = []

    def counted(model, batch):
        sizes.append(len(batch))
        return model(batch)

    find_hopeless(wild, [torch.randn(4, 3, 8, 8)] * 3, forward=counted)
    assert sizes == [1]


def test_no_random_numbers_are_drawn(wild, batches):
    torch.manual_seed(3)
    warn_hopeless(
        wild, batches, forward=lambda m, x: m(x + 0 * torch.rand_like(x))
    )
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_many_are_counted(wild, batches):
    one = find_hopeless(wild, batches, forward=forward)
    (text,) = hopeless_warnings(one * 5)
    assert text.startswith('5 tensors')
    assert '; and 2 more' in text
    assert hopeless_warnings([]) == []
