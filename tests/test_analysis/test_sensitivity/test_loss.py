import torch
from wild_net import PlainAdapter

from taskptq.analysis.sensitivity.loss import run_like


def test_instances_of_the_float_model_are_kept():
    class Selecting(PlainAdapter):
        def forward_like(self, model, batch, *, heads):
            return {'output': heads['output'] + model(batch)}

    model = torch.nn.Identity()
    batch, heads = torch.ones(2), {'output': torch.ones(2)}
    assert run_like(PlainAdapter(), model, batch, heads=heads)[
        'output'
    ].tolist() == [1, 1]
    assert run_like(Selecting(), model, batch, heads=heads)[
        'output'
    ].tolist() == [2, 2]
