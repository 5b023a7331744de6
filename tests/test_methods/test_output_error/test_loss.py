import pytest
import torch
from wild_net import PlainAdapter

from taskptq.methods.output_error import OutputErrorLoss
from taskptq.reconstruction.losses import NetworkProbe, ReconContext


class Weighing(PlainAdapter):
    """The first position matters, the others don't."""

    def output_weights(self, heads):
        return {'a': torch.tensor([1.0, 0.0, 0.0, 0.0])}


def context(images=2):
    return ReconContext(
        unit='', step=0, num_steps=1, image_ids=tuple(range(images))
    )


def begun(loss, heads, *, adapter):
    loss.begin(
        NetworkProbe(
            heads_float=[heads],
            metas=[[{}] * len(heads['a'])],
            run=lambda number: heads,
            adapter=adapter,
        )
    )
    return loss


def test_all_signal_lost_is_one():
    heads = {'a': torch.randn(200, 4)}
    loss = begun(OutputErrorLoss(), heads, adapter=PlainAdapter())
    wrong = {'a': torch.zeros(200, 4)}
    assert float(loss(wrong, heads, context(200))) == pytest.approx(1, abs=0.1)
    assert float(loss(heads, heads, context(200))) == 0


def test_the_floor_lets_background_count():
    heads = {'a': torch.randn(20, 4)}
    wrong = heads['a'].clone()
    wrong[:, 1] += 10
    found = [
        float(
            begun(OutputErrorLoss(floor=floor), heads, adapter=Weighing())(
                {'a': wrong}, heads, context(20)
            )
        )
        for floor in (0.0, 0.1, 1.0)
    ]
    assert found[0] == 0
    assert found[2] == pytest.approx(10 * found[1], rel=1e-4)


def test_gradients_reach_the_outputs():
    heads = {'a': torch.randn(5, 4)}
    loss = begun(OutputErrorLoss(), heads, adapter=PlainAdapter())
    quant = (heads['a'] + 1).requires_grad_(True)
    loss({'a': quant}, heads, context(5)).backward()
    assert bool((quant.grad > 0).all())


def test_units_are_refused():
    loss = OutputErrorLoss()
    with pytest.raises(ValueError, match='outputs of whole networks'):
        loss(torch.ones(2), torch.ones(2), context())


def test_wrong_floor():
    with pytest.raises(ValueError, match='floor'):
        OutputErrorLoss(floor=1.5)
