"""Two gloo processes against one."""

import os

import pytest
import ranks_worker
import torch
import warm_python

EXACT = ['minmax', 'mse', 'percentile', 'kl', 'aligned']
LEARNED = ['adaround', 'layer', 'gptq', 'matched', 'branch', 'branch gptq']

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def ranks(tmp_path_factory, repo_root):
    """What each of two ranks has in the end, by case."""
    folder = tmp_path_factory.mktemp('ranks')
    path = os.pathsep.join([str(repo_root), os.environ.get('PYTHONPATH', '')])
    warm_python.run_ranks(
        [ranks_worker.__file__, 'ranks', folder],
        env=os.environ | {'PYTHONPATH': path},
    )
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


def assert_equal(one, two):
    for part in ('state', 'codes'):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), name


@pytest.mark.parametrize('name', [*EXACT, *LEARNED])
def test_both_ranks_end_with_the_same_bits(ranks, name):
    assert_equal(ranks[0][name], ranks[1][name])
    assert ranks[0][name]['unobserved'] == []


@pytest.mark.parametrize('name', EXACT)
def test_ranges_are_those_of_one_process(ranks, name):
    assert_equal(ranks[0][name], ranks_worker.run_case(name))


def test_a_shard_alone_would_differ(ranks):
    alone = ranks_worker.run_case('minmax', rank=0, world_size=2)['state']
    state = ranks[0]['minmax']['state']
    assert any(
        not torch.equal(value, alone[name])
        for name, value in state.items()
        if name.endswith('input_quantizer.scale')
    )


@pytest.mark.parametrize('name', LEARNED)
def test_reconstruction_did_something(ranks, name, monkeypatch):
    kind, observer, _ = ranks_worker.CASES[name]
    monkeypatch.setitem(ranks_worker.CASES, 'nearest', (kind, observer, None))
    nearest = ranks_worker.run_case('nearest')['codes']
    codes = ranks[0][name]['codes']
    assert any(not torch.equal(codes[key], nearest[key]) for key in codes)


def test_closed_form_rounds_as_one_process_does(ranks):
    codes = ranks[0]['gptq']['codes']
    single = ranks_worker.run_case('gptq')['codes']
    same = torch.cat([(codes[k] == single[k]).flatten() for k in codes])
    # The Hessians are equal up to the order of their sums.
    assert same.float().mean() > 0.99


@pytest.mark.parametrize('name', ['branch', 'branch gptq'])
def test_layer_that_ran_on_one_rank_only(ranks, name):
    for rank in ranks:
        assert rank[name]['units'] == ['block', 'head']
        assert rank[name]['uncalled'] == ['sometimes']


def test_states_that_one_rank_lacks_are_trained_by_both(ranks):
    assert [rank['resumed']['resumed'] for rank in ranks] == [3, 3]
    assert_equal(ranks[0]['resumed'], ranks[1]['resumed'])
    assert_equal(ranks[0]['resumed'], ranks[0]['before'])
