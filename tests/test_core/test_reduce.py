import importlib.util
import os
from pathlib import Path

import pytest
import torch
import warm_python

from taskptq.core import MinMaxObserver, QuantSpec
from taskptq.core.reduce import reduce_observers

WORKER = Path(__file__).with_name('reduce_worker.py')


def load_worker():
    spec = importlib.util.spec_from_file_location('reduce_worker', WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def ranks(tmp_path_factory, repo_root):
    """Two processes that each saw a part, and one that saw everything."""
    worker = load_worker()
    folder = tmp_path_factory.mktemp('reduce')
    path = os.pathsep.join([str(repo_root), os.environ.get('PYTHONPATH', '')])
    environment = os.environ | {'PYTHONPATH': path}
    warm_python.run_ranks(
        [WORKER, folder], env=environment, count=worker.WORLD_SIZE
    )
    saved = [torch.load(folder / f'{rank}.pt') for rank in range(2)]
    observers = worker.make_observers()
    worker.observe(observers, range(worker.NUM_BATCHES), rank=None)
    refusals = [(folder / f'{rank}.txt').read_text() for rank in range(2)]
    return saved, worker.state_of(observers), refusals


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        for a, b in zip(
            value if isinstance(value, list) else [value],
            two[name] if isinstance(value, list) else [two[name]],
            strict=True,
        ):
            if not isinstance(a, torch.Tensor):
                assert a == b, name
            elif tolerance:
                torch.testing.assert_close(a, b, **tolerance)
            else:
                assert a.dtype == b.dtype
                assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1, 2, 3, 4, 5, 9, 10])
def test_equal_to_one_process_that_saw_everything(ranks, index):
    saved, expected, _ = ranks
    for rank in saved:
        assert_same(rank['states'][index], expected[index])


def test_sums(ranks):
    saved, expected, _ = ranks
    for rank in saved:
        state = rank['states'][8]
        assert torch.equal(state['seen'], expected[8]['seen'])
        assert_same(state, expected[8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('index', 'dim'), [(6, None), (7, (0, 2))])
def test_mean_weighs_by_batches(ranks, index, dim):
    saved, _, _ = ranks
    worker = load_worker()
    lows = []
    for rank in range(2):
        observers = worker.make_observers()
        indices = range(rank, worker.NUM_BATCHES, 2)
        worker.observe(observers, indices, rank=rank)
        lows.append(observers[index].min_val.double())
    expected = (lows[0] * 4 + lows[1] * 3) / 7
    for rank in saved:
        state = rank['states'][index]
        assert state['num_batches'] == 7
        assert state['min_val'].shape == ((1,) if dim is None else (3,))
        torch.testing.assert_close(state['min_val'], expected.float())


def test_all_ranks_agree_to_the_bit(ranks):
    saved, _, _ = ranks
    for one, two in zip(saved[0]['states'], saved[1]['states'], strict=True):
        assert_same(one, two)


def test_observer_that_saw_nothing_anywhere(ranks):
    saved, _, _ = ranks
    for rank in saved:
        state = rank['states'][11]
        assert state['num_batches'] == 0
        assert state['min_val'].numel() == 0
        assert 'range' not in state


def pieces_of(state):
    """The gathered sample as a sorted list of (shape, sums)."""
    shapes = state['shapes'].view(-1, 5).tolist()
    rows = state['attention_rows'].split(
        [h * c * n * m for h, c, n, m, _ in shapes]
    )
    values = state['value_columns'].split(
        [h * c * m * d for h, c, _, m, d in shapes]
    )
    return sorted(
        (tuple(shape), round(float(v.double().sum()), 4), a.numel())
        for shape, a, v in zip(shapes, rows, values, strict=True)
    )


def test_samples_are_gathered(ranks):
    saved, expected, _ = ranks
    for rank in saved:
        for index in (12, 13):
            state = rank['states'][index]
            assert torch.equal(state['max_val'], expected[index]['max_val'])
            assert state['num_batches'] == expected[index]['num_batches']
        shapes = [shape for shape, _, _ in pieces_of(rank['states'][12])]
        assert shapes == [shape for shape, _, _ in pieces_of(expected[12])]
        # Seen by the second rank alone, and all there is.
        assert pieces_of(rank['states'][13]) == pieces_of(expected[13])


def test_ranks_divide_the_room(ranks):
    saved, expected, _ = ranks
    worker = load_worker()
    for state in (saved[0]['states'][14], expected[14]):
        kept = state['attention_rows'].numel() + state['value_columns'].numel()
        assert worker.ROOM / 4 < kept <= worker.ROOM


def test_few_collectives(ranks):
    saved, _, _ = ranks
    # and one for each of the three buffers of each gathered sample
    assert [rank['collectives'] for rank in saved] == [5 + 9, 5 + 9]


def test_different_models_are_refused_on_every_rank(ranks):
    _, _, refusals = ranks
    for refusal in refusals:
        assert 'sizes [2, 3] on different ranks' in refusal


def test_single_process_is_left_alone():
    observer = MinMaxObserver(QuantSpec())
    observer.observe(torch.tensor([1.0, 2.0]))
    reduce_observers([observer])
    assert (observer.min_val.item(), observer.num_batches) == (1.0, 1)
