import pytest
from torch import nn

from taskptq.methods.sparsity.prunable import find_prunable
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.sparsity import SparsityConfig

CONFIG = SparsityConfig(rate=0.5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.twin = nn.Conv2d(8, 8, 1)


@pytest.fixture
def net():
    model = Net().eval()
    prepare(model, QConfig.from_dict({'activation': False}))
    model.twin.weight = model.point.weight
    return model


def test_roles_stay_dense_and_are_named(net):
    prunable, dense = find_prunable(net, CONFIG, edges={'stem'})
    assert [one.name for one in prunable] == ['point.weight']
    assert dense == {
        'stem.weight': 'first or last layer',
        'depthwise.weight': 'depthwise',
    }


def test_a_shared_weight_counts_once_for_all_its_layers(net):
    (one,), _ = find_prunable(net, CONFIG, edges={'stem'})
    assert one.quantizers == (
        net.point.weight_quantizer,
        net.twin.weight_quantizer,
    )


def test_patterns_keep_layers_dense(net):
    config = SparsityConfig(rate=0.5, keep_dense=['st*'])
    prunable, dense = find_prunable(net, config)
    assert "keep_dense 'st*'" in dense['stem.weight']
    assert [one.name for one in prunable] == ['point.weight']


def test_nothing_to_prune_is_refused(net):
    config = SparsityConfig(rate=0.5, keep_dense=['*'])
    with pytest.raises(ValueError, match='Net has no prunable weight'):
        find_prunable(net, config)
