import torch
from torch import nn

from taskptq.engine.rewriting import apply_rewrites, run_batch
from taskptq.registry import REWRITES


class Stepping(nn.Module):
    def test_step(self, batch):
        return batch + 1


def test_a_host_model_runs_its_own_test_step():
    assert run_batch(Stepping(), torch.zeros(2)).tolist() == [1, 1]
    assert run_batch(nn.Identity(), torch.zeros(2)).tolist() == [0, 0]


def test_rewrites_run_in_order_and_their_reports_are_plain(monkeypatch):
    class Add:
        def __init__(self, value):
            self.value = value

        def __call__(self, model, stats):
            model.bias.data += self.value
            return {'after': model.bias.item(), 'seen': len(stats.batches)}

    monkeypatch.setitem(REWRITES.module_dict, 'Add', Add)
    model = nn.Linear(1, 1)
    model.bias.data.zero_()
    reports = apply_rewrites(
        model,
        [torch.zeros(1, 1)],
        [{'type': 'Add', 'value': 1.0}, {'type': 'Add', 'value': 2.0}],
    )
    assert reports == [
        {'after': 1.0, 'seen': 1},
        {'after': 3.0, 'seen': 1},
    ]
    assert apply_rewrites(model, [], []) == []
