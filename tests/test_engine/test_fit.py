"""Weights that belong to a model, and weights that do not."""

import logging

import pytest
import torch
from torch import nn

from taskptq.engine.fit import refuse_misfit

LOGGER = logging.getLogger('test_fit')


class Migrating(nn.Linear):
    """Renames what its older versions were saved as."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        old = state_dict.pop(f'{prefix}kernel', None)
        if old is not None:
            state_dict[f'{prefix}weight'] = old
        super()._load_from_state_dict(state_dict, prefix, *args)


def small_net():
    return nn.Sequential(Migrating(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weights_of(model):
    return {name: value + 1 for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    'change',
    [
        lambda state: {'state_dict': state},
        lambda state: state,
        lambda state: {
            f'module.{name}': value for name, value in state.items()
        },
        lambda state: {
            name: value
            for name, value in state.items()
            if 'num_batches' not in name
        },
        lambda state: {
            name.replace('0.weight', '0.kernel'): value
            for name, value in state.items()
        },
    ],
    ids=['nested', 'bare', 'wrapped', 'without-counter', 'migrated'],
)
def test_weights_that_fit(change):
    model = small_net()
    state = weights_of(model)
    refuse_misfit(model, change(state), path='a.pth', logger=LOGGER)
    assert torch.equal(model[0].weight, state['0.weight'])
    assert torch.equal(model[1].running_mean, state['1.running_mean'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda s: s.pop('2.weight'), r'2\.weight is missing \(1 in all'),
        (lambda s: s.update({'0.weight': torch.ones(3, 4)}), 'size mismatch'),
        (lambda s: s.update({'0.weight': 3}), '0.weight'),
        (lambda s: [s.pop(n) for n in list(s) if n[0] != '2'], '6 in all'),
        (lambda s: s.clear(), 'holds no weights'),
        (lambda s: s.update({'0.weight': s['0.weight'] + 0j}), 'complex'),
        (lambda s: s.update({3: torch.ones(1)}), 'has no state_dict'),
        (
            lambda s: s.update({'other.weight': torch.ones(300)}),
            'does not use 1',
        ),
    ],
)
def test_weights_that_do_not_fit(change, words):
    model = small_net()
    state = weights_of(model)
    change(state)
    with pytest.raises(ValueError, match=words) as error:
        refuse_misfit(
            model, {'state_dict': state}, path='a.pth', logger=LOGGER
        )
    assert 'a.pth' in str(error.value)
    assert '\n' not in str(error.value)


def test_a_state_dict_of_another_type():
    for state in ('note', [torch.ones(2)], None):
        with pytest.raises(ValueError, match='has no state_dict'):
            refuse_misfit(
                small_net(), {'state_dict': state}, path='a.pth', logger=LOGGER
            )


def test_some_weights_left_over_are_a_warning(caplog):
    model = small_net()
    state = {**weights_of(model), 'auxiliary.weight': torch.ones(8)}
    with caplog.at_level('WARNING'):
        refuse_misfit(model, state, path='a.pth', logger=LOGGER)
    assert 'does not use 1' in caplog.text
    assert 'auxiliary.weight' in caplog.text
