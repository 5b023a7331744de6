"""Folding leaves the output as it is, and folds only what it may."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from taskptq.prepare import fuse_batchnorm
from taskptq.prepare.fuse import (
    candidate_pairs,
    former_pairs,
    structural_pairs,
)
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def check(model: nn.Module, x: Tensor, folded: list[str]) -> None:
    """Fold, and compare the names and the output."""
    model = randomised(model)
    with torch.no_grad():
        before = model(x)
        assert fuse_batchnorm(model) == folded
        after = model(x)
    torch.testing.assert_close(
        after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max())
    )
    for name in folded:
        assert isinstance(model.get_submodule(name), nn.Identity)


IMAGE = (2, 3, 8, 8)
PAIRS = {
    'conv': (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), IMAGE),
    'conv without bias': (
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        IMAGE,
    ),
    'grouped conv': (
        nn.Conv2d(6, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        (2, 6, 8, 8),
    ),
    'not affine': (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), IMAGE),
    'sync': (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), IMAGE),
    'transposed': (
        nn.ConvTranspose2d(3, 4, 4, stride=2, bias=False),
        nn.BatchNorm2d(4),
        IMAGE,
    ),
    'square transposed': (
        nn.ConvTranspose2d(3, 3, 2),
        nn.BatchNorm2d(3),
        IMAGE,
    ),
    'grouped transposed': (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
    ),
    'depthwise transposed': (
        nn.ConvTranspose2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        (2, 4, 5, 5),
    ),
}


@pytest.mark.parametrize('kind', PAIRS)
def test_pair_in_a_sequence(kind: str) -> None:
    layer, norm, shape = PAIRS[kind]
    model = nn.Sequential(layer, norm, nn.ReLU())
    check(model, torch.randn(shape), ['1'])


def test_double_precision_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    check(model, torch.randn(IMAGE).double(), ['1'])
    assert model[0].weight.dtype == model[0].bias.dtype == torch.float64


@pytest.mark.parametrize('name', TINY_MODELS)
def test_tiny_models(name: str) -> None:
    model = tiny_model(name)
    x = tiny_batches(name)[0]
    with torch.no_grad():
        before = model(x)
        fuse_batchnorm(model)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_blocks_name_their_norms() -> None:
    folded = fuse_batchnorm(tiny_model('conv'))
    assert folded == [
        'layer1.bn1',
        'layer1.bn2',
        'layer2.bn1',
        'layer2.bn2',
        'layer2.shortcut.1',
    ]


class NormAndRelu(nn.BatchNorm2d):
    """A norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Holding(nn.BatchNorm2d):
    """A norm that holds an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Residual(nn.Sequential):
    """A Sequential by inheritance only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self[1](self[0](x).relu())


class Block(nn.Module):
    """Named as in a ResNet, with the norm after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3)
        self.bn1 = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x).relu())


KEPT = {
    'named as a pair': Block(),
    'activation between': nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)
    ),
    'norm first': nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),
    'no statistics': nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
    ),
    'layer norm': nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)),
    'own activation': nn.Sequential(nn.Conv2d(3, 3, 1), NormAndRelu(3)),
    'holds its activation': nn.Sequential(nn.Conv2d(3, 3, 1), Holding(3)),
    'own forward': Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
    'own conv': nn.Sequential(Doubled(3, 3, 1), nn.BatchNorm2d(3)),
    'weight norm': nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
    ),
}


@pytest.mark.parametrize('kind', KEPT)
def test_what_does_not_follow_directly_is_kept(kind: str) -> None:
    check(KEPT[kind], torch.randn(2, 3, 6, 6), [])


def test_activation_used_twice_still_stands_between() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3))
    check(model, torch.randn(2, 3, 6, 6), [])


class SharedConv(nn.Module):
    """One conv, a norm for each of two levels."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        other = conv
        if tied:
            other = nn.Conv2d(3, 3, 1)
            other.weight = conv.weight
        self.a = nn.Sequential(conv, nn.BatchNorm2d(3))
        self.b = nn.Sequential(other, nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)])


@pytest.mark.parametrize('tied', [False, True])
def test_shared_convs_keep_their_norms(tied: bool) -> None:
    check(SharedConv(tied=tied), torch.randn(2, 3, 6, 6), [])


class PreActivation(nn.Module):
    """Norms come before their convs, though the names pair them."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.bn1(x).relu())


def test_pre_activation_is_kept() -> None:
    check(PreActivation(), torch.randn(2, 3, 6, 6), [])


NORM = {'type': 'BN'}
ORDERS = {
    ('conv', 'norm', 'act'): ['bn'],
    ('act', 'conv', 'norm'): ['bn'],
    ('norm', 'conv', 'act'): [],
    ('conv', 'act', 'norm'): [],
}


@pytest.mark.parametrize('order', ORDERS)
def test_conv_module_in_every_order(order: tuple[str, ...]) -> None:
    bricks = pytest.importorskip('mmcv.cnn')
    # Channels in and out are alike, so only the order can tell.
    model = bricks.ConvModule(3, 3, 3, padding=1, norm_cfg=NORM, order=order)
    check(model, torch.randn(IMAGE), ORDERS[order])


def test_conv_module_without_norm() -> None:
    bricks = pytest.importorskip('mmcv.cnn')
    check(bricks.ConvModule(3, 4, 3), torch.randn(IMAGE), [])


def test_conv_module_folding_on_the_fly_is_switched_off() -> None:
    bricks = pytest.importorskip('mmcv.cnn')
    model = bricks.ConvModule(3, 4, 3, norm_cfg=NORM)
    model.turn_on_efficient_conv_bn_eval()
    check(model, torch.randn(IMAGE), ['bn'])
    assert model.efficient_conv_bn_eval_forward is None


@pytest.mark.parametrize('depth', [18, 50])
def test_resnet_folds_every_norm(depth: int) -> None:
    resnet = pytest.importorskip('mmdet.models.backbones.resnet')
    model = resnet.ResNet(depth=depth, base_channels=8, out_indices=(3,))
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[0]

    wrapped = randomised(Last())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = wrapped(x)
        folded = fuse_batchnorm(wrapped)
        after = wrapped(x)
    assert sorted(folded) == sorted(f'net.{name}' for name in norms)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_linear_is_folded_only_when_asked() -> None:
    # Whether its input has two dimensions, no class tells.
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    check(model, torch.randn(6, 5), [])
    with torch.no_grad():
        before = model(torch.ones(6, 5))
        assert fuse_batchnorm(model, [('0', '1')]) == ['1']
        torch.testing.assert_close(model(torch.ones(6, 5)), before)


@pytest.mark.parametrize(
    ('pair', 'name'),
    [
        (('0', 'nowhere'), 'nowhere'),
        (('nowhere', '1'), 'nowhere'),
        (('0', '2'), "'2'"),
        (('1', '1'), "'1'"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    pair: tuple[str, str], name: str
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(5)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=name):
        fuse_batchnorm(model, [('0', '1'), pair])
    assert type(model[1]) is nn.BatchNorm2d
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_subclass_with_the_forward_of_its_base_is_known() -> None:

    class Stage(nn.Sequential):
        pass

    class Norm(nn.BatchNorm2d):
        pass

    check(Stage(nn.Conv2d(3, 4, 1), Norm(4)), torch.randn(IMAGE), ['1'])


def test_norm_is_replaced_wherever_it_is_held() -> None:

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.steps = [self.stage[0], ('norm', self.stage[1])]
            self.by_name = {'norm': {'last': self.stage[1]}}

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[1][1](self.steps[0](x)) + self.stage(x)

    model = Listed()
    check(model, torch.randn(IMAGE), ['stage.1'])
    assert model.by_name['norm']['last'] is model.stage[1]


def test_norm_under_two_names_needs_data() -> None:
    # Nothing but a pass tells whether both names are used.
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU(), norm)
    check(model, torch.randn(IMAGE), [])


def test_candidates_include_what_names_and_order_suggest() -> None:

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 1)
            self.reduce = nn.Conv2d(4, 4, 1)
            self.reduce_norm = nn.BatchNorm2d(4)
            self.bn1 = nn.BatchNorm2d(4)

    assert structural_pairs(Odd()) == []
    assert former_pairs(Odd()) == [('conv1', 'bn1')]
    assert set(candidate_pairs(Odd())) == {
        ('conv1', 'bn1'),
        ('reduce', 'reduce_norm'),
    }


@pytest.mark.parametrize('build', ['plain', 'sync', 'reverted'])
def test_structure_is_the_same_however_sync_norms_were_built(
    build: str,
) -> None:
    utils = pytest.importorskip('mmengine.model')
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    if build != 'plain':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if build == 'reverted':
        model = utils.revert_sync_batchnorm(model)
    check(model, torch.randn(IMAGE), ['1'])
    assert set(model.state_dict()) == {'0.weight', '0.bias'}


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
)
def test_outlines_without_values_are_folded(layer):
    model = nn.Sequential(layer, nn.BatchNorm2d(6)).eval()
    shape = layer.weight.shape
    assert fuse_batchnorm(model.to('meta')) == ['1']
    assert model[0].weight.shape == shape
    assert model[0].weight.is_meta
    assert model[0].bias.shape == (6,)
    assert model[0].bias.dtype == model[0].weight.dtype
