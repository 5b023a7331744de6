"""Network-wise training: probes, outputs like others, after blocks."""

import copy

import pytest
import torch

from taskptq.calibration.batches import (
    BatchParts,
    batch_length,
    batch_metas,
)
from taskptq.core import (
    AffineQuantizer,
    LearnedRounding,
    QuantSpec,
    float_only,
)
from taskptq.core.switches import dropping, quantizing
from taskptq.modules.base import quant_modules
from taskptq.reconstruction import (
    MSEReconLoss,
    ReconstructionConfig,
    reconstruct,
)
from taskptq.reconstruction.network import NetworkData
from taskptq.testing import tiny_batches, tiny_model


class Adapter:
    def forward_heads(self, model, batch):
        scores = model(batch)
        return {'cls': scores[:, :2], 'reg': scores[:, 2:]}


class LikeAdapter(Adapter):
    """Outputs of the quantized model depend on the float model's."""

    def __init__(self):
        self.seen = []

    def forward_like(self, model, batch, *, heads):
        self.seen.append(heads)
        return self.forward_heads(model, batch)


def codes_of(model):
    return {name: module.codes() for name, module in quant_modules(model)}


def test_metas():
    class Sample:
        metainfo = {'crop': (0, 1, 2, 3)}  # noqa: RUF012

    batch = {
        'inputs': torch.zeros(2, 3, 4, 4),
        'data_samples': [Sample(), {'crop': None}],
    }
    assert batch_metas(batch) == [{'crop': (0, 1, 2, 3)}, {'crop': None}]
    assert batch_metas(torch.zeros(2, 3)) == [{}, {}]


@pytest.mark.parametrize('size', [1, 2, 4, 9])
def test_parts_of_batches(size):
    batches = [
        {
            'inputs': torch.arange(4.0 * k, 4 * k + count),
            'data_samples': [{'number': k, 'row': n} for n in range(count)],
            'name': 'abcd',
        }
        for k, count in enumerate((4, 3))
    ]
    parts = BatchParts(batches, size)
    assert len(parts) == sum(-(-count // size) for count in (4, 3))
    assert max(map(batch_length, parts)) == min(size, 4)
    rows = torch.cat([part['inputs'] for part in parts])
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6]
    metas = [meta for part in parts for meta in batch_metas(part)]
    assert metas == [
        {'number': k, 'row': n}
        for k, count in enumerate((4, 3))
        for n in range(count)
    ]
    assert {part['name'] for part in parts[:]} == {'abcd'}


def test_parts_of_plain_batches():
    parts = BatchParts(
        [
            torch.zeros(3, 2),
            {'inputs': {'image': [1, 2], 'points': torch.zeros(2, 5)}},
        ],
        2,
    )
    assert [batch_length(part) for part in parts] == [2, 1, 2]
    with pytest.raises(ValueError, match=r'network_batch_size=2: .*object'):
        BatchParts([object()], 2)


@pytest.mark.parametrize('scope', ['block', 'network'])
def test_network_batch_size(quantized, quick, forward, scope):
    batches = tiny_batches('conv', num_batches=2, batch_size=6)
    seen = []

    def loss(quant_out, float_out, context):
        if not context.unit:
            seen.append((len(quant_out['cls']), context.image_ids))
            for name, target in float_out.items():
                images = torch.cat(batches)[list(context.image_ids)]
                with torch.no_grad(), float_only(model):
                    expected = Adapter().forward_heads(model, images)[name]
                torch.testing.assert_close(target, expected)
        return MSEReconLoss()(quant_out, float_out, context)

    model = quantized('conv', batches, bits=2)
    steps = (
        {'scope': 'network'} if scope == 'network' else {'network_steps': 12}
    )
    reconstruct(
        model,
        batches,
        quick(network_batch_size=4, **steps),
        forward=forward,
        loss=loss,
        adapter=Adapter(),
        progress=False,
    )
    assert {size for size, _ in seen} == {4, 2}
    assert {ids for _, ids in seen} == {
        (0, 1, 2, 3),
        (4, 5),
        (6, 7, 8, 9),
        (10, 11),
    }


def test_probe_runs_the_model_as_it_is(quantized):
    batches = tiny_batches('conv')
    model = quantized('conv', batches, activation_bits=3)
    adapter = LikeAdapter()
    data = NetworkData(model, batches, adapter)
    probe = data.probe()
    with torch.no_grad(), quantizing(model):
        expected = adapter.forward_heads(model, batches[1])
    with quantizing(model), dropping(model, drop_prob=0.5):
        found = probe.run(1)
        assert all(
            q.drop_prob == 0.5
            for name, q in named_quantizers(model)
            if 'weight' not in name
        )
    assert torch.equal(found['cls'], expected['cls'])
    assert not found['cls'].requires_grad
    assert adapter.seen == [data.targets[1]]
    reference = tiny_model('conv')(batches[1])[:, :2]
    torch.testing.assert_close(probe.heads_float[1]['cls'], reference)
    assert probe.metas == [[{}] * 4] * 2


def named_quantizers(model):
    from taskptq.core.switches import quantizers

    return list(quantizers(model))


class Beginning(MSEReconLoss):
    """Notes what it is given."""

    def begin(self, probe):
        self.probe = probe
        self.units = []

    def __call__(self, quant_out, float_out, context):
        self.units.append(context.unit)
        return super().__call__(quant_out, float_out, context)

    def report(self):
        return {'units': len(self.units)}


def test_network_after_blocks(quantized, quick, forward, tmp_path):
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    results = {}
    for steps in (0, 25):
        model = quantized('conv', batches, bits=2)
        loss = Beginning()
        report = reconstruct(
            model,
            batches,
            quick(network_steps=steps, weight_lr=0.3),
            forward=forward,
            loss=loss if steps else None,
            adapter=Adapter(),
            state_dir=tmp_path / str(steps),
            progress=False,
        )
        results[steps] = model, report, loss
    (before, first, _), (after, second, loss) = results[0], results[25]
    assert [u.name for u in second.units] == [
        *[u.name for u in first.units],
        '',
    ]
    assert set(loss.units) == {''}
    assert second.loss == {'units': 25}
    assert second.num_forwards == first.num_forwards + 1
    # The blocks' roundings are where the network starts from.
    one, two = codes_of(before), codes_of(after)
    same = sum(int((one[n] == two[n]).sum()) for n in one)
    total = sum(codes.numel() for codes in one.values())
    assert 0.7 * total < same < total
    again = quantized('conv', batches, bits=2)
    resumed = reconstruct(
        again,
        batches,
        quick(network_steps=25, weight_lr=0.3),
        forward=forward,
        loss=Beginning(),
        adapter=Adapter(),
        state_dir=tmp_path / '25',
        progress=False,
    )
    assert resumed.resumed_units == len(second.units)
    found = codes_of(again)
    assert all(torch.equal(found[name], two[name]) for name in two)


def test_blocks_are_shared(quantized, quick, forward, tmp_path):
    """What follows on the network starts from blocks trained elsewhere."""
    batches = tiny_batches('conv', num_batches=2, batch_size=8)

    def run(folder, **settings):
        model = quantized('conv', batches, bits=2)
        report = reconstruct(
            model,
            batches,
            quick(weight_lr=0.3, **settings),
            forward=forward,
            adapter=Adapter(),
            progress=False,
            loss=Beginning() if 'network_steps' in settings else None,
            shared_dir=folder,
        )
        return report, codes_of(model)

    blocks, _ = run(tmp_path)
    assert blocks.resumed_units == 0
    assert blocks.resumed_seconds == 0
    alone, expected = run(None, network_steps=15)
    found, codes = run(tmp_path, network_steps=15)
    assert alone.resumed_units == 0
    assert found.resumed_units == len(blocks.units)
    assert found.resumed_seconds == pytest.approx(
        sum(unit.seconds for unit in blocks.units)
    )
    assert len(found.units) == len(blocks.units) + 1
    assert all(torch.equal(codes[n], expected[n]) for n in codes)
    # Others find nothing, and leave what is there.
    other, _ = run(tmp_path, network_steps=15, drop_prob=0.25)
    assert other.resumed_units == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert run(tmp_path)[0].resumed_units == len(blocks.units)


def test_network_train_without_a_trunk(quantized, quick, forward):
    """Chosen layers learn; an adapter that cannot split runs everything."""
    batches = tiny_batches('conv')
    model = quantized('conv', batches, bits=2)
    before = codes_of(model)
    chosen = list(before)[-1]
    config = quick(scope='network', weight_lr=0.3, network_train=[chosen])
    report = reconstruct(
        model,
        batches,
        config,
        forward=forward,
        adapter=Adapter(),
        progress=False,
    )
    after = codes_of(model)
    changed = [n for n in after if not torch.equal(before[n], after[n])]
    assert changed == [chosen]
    assert report.units[0].num_weights == before[chosen].numel()
    with pytest.raises(ValueError, match=r"network_train: pattern 'x\*'"):
        reconstruct(
            model,
            batches,
            quick(scope='network', network_train=['x*']),
            forward=forward,
            adapter=Adapter(),
        )


def test_a_rounding_leans_towards_codes():
    quantizer = AffineQuantizer(QuantSpec(num_bits=3, signed=True))
    quantizer.set_bounds(signed=True)
    quantizer.set_range(torch.tensor([-2.0]), torch.tensor([1.5]))
    weight = torch.randn(50)
    rounding = LearnedRounding(quantizer, weight)
    nearest = rounding.codes()
    codes = (
        torch.where(torch.rand(50) > 0.5, rounding.base, rounding.base + 1)
        .clamp(-4, 3)
        .int()
    )
    rounding.lean_towards(codes)
    assert torch.equal(rounding.codes(), codes)
    assert not torch.equal(nearest, codes)
    soft = (rounding() / rounding.scale + rounding.zero_point).detach()
    assert float((soft - codes).abs().max()) == pytest.approx(0.1, abs=1e-5)
    assert rounding.settled() == 0


def test_network_steps_have_settings_of_their_own(quantized, quick, forward):
    """With rates of 0 the network phase leaves the blocks' codes alone."""
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    codes, flipped = [], []
    for network in (None, {'weight_lr': 0.0}, {'straight_through': True}):
        model = quantized('conv', batches, bits=2)
        steps = (
            {}
            if network is None
            else {'network_steps': 15, 'network': network}
        )
        report = reconstruct(
            model,
            batches,
            quick(weight_lr=0.3, **steps),
            forward=forward,
            adapter=Adapter(),
            progress=False,
        )
        codes.append(codes_of(model))
        flipped.append(report.flipped)
    blocks, still, hard = codes
    assert flipped[0] > 0.02  # from the nearest codes
    assert flipped[1] == 0
    changed = sum((blocks[n] != hard[n]).sum().item() for n in blocks)
    total = sum(codes.numel() for codes in blocks.values())
    assert flipped[2] == pytest.approx(changed / total) != 0
    assert all(torch.equal(blocks[n], still[n]) for n in blocks)
    assert any(not torch.equal(blocks[n], hard[n]) for n in blocks)
    assert report.units[-1].settled == 1.0


def test_says_that_no_rounding_flipped(quantized, quick, forward, caplog):
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    for rate, expected in ((1e-4, 1), (0.3, 0)):
        caplog.clear()
        model = quantized('conv', batches, bits=2)
        network = {'straight_through': True, 'weight_lr': rate}
        reconstruct(
            model,
            batches,
            quick(steps=5, network_steps=15, network=network),
            forward=forward,
            adapter=Adapter(),
            progress=False,
        )
        found = [r for r in caplog.records if 'flipped' in r.getMessage()]
        assert len(found) == expected


def test_network_steps_need_an_adapter(quantized, quick, forward):
    model, batches = quantized('conv'), tiny_batches('conv')
    before = copy.deepcopy(codes_of(model))
    with pytest.raises(ValueError, match='adapter: register one'):
        reconstruct(model, batches, quick(network_steps=3), forward=forward)
    after = codes_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    'settings',
    [
        {'network_steps': -1},
        {'network_steps': 5, 'scope': 'network'},
    ],
)
def test_network_steps_that_cannot_be(settings):
    with pytest.raises(ValueError, match='network_steps='):
        ReconstructionConfig.from_dict(settings)


LATENT = {
    'network_steps': 40,
    'network': {
        'latent_weights': True,
        'weight_lr': 0.05,
        'scale_lr': 2e-3,
        'learn_scales': False,
        'drop_prob': 0.0,
        'keep_better': True,
    },
}


def has_bias(module):
    return module.bias_of() is not None


def scales_of(model):
    return {
        name: module.weight_quantizer_of('weight').scale.detach().clone()
        for name, module in quant_modules(model)
    }


def test_latent_weights_train_codes_scales_and_biases(
    quantized, quick, forward
):
    """They start where GPTQ ended, and end closer to the float model."""
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    model = quantized('conv', batches, bits=3)
    before = scales_of(model)
    report = reconstruct(
        model,
        batches,
        quick(rounding='gptq', **LATENT),
        forward=forward,
        adapter=Adapter(),
        progress=False,
    )
    last = report.units[-1]
    assert not last.taken_back
    assert last.set_loss_end < 0.8 * last.set_loss_start
    assert 0 < last.flipped < 0.5
    after = scales_of(model)
    assert all(not torch.equal(before[n], after[n]) for n in before)
    for _, module in quant_modules(model):
        biases = module.corrected_biases
        assert set(biases) == ({'weight'} if has_bias(module) else set())
        assert not any(bias.requires_grad for bias in biases.values())
        assert not module.roundings
        with quantizing(module):
            weight = module.quantized_weight()
        quantizer = module.weight_quantizer_of('weight')
        on_grid = quantizer.dequantize(quantizer.quantize(weight))
        torch.testing.assert_close(weight, on_grid)


def test_latent_steps_that_do_harm_leave_no_trace(quantized, quick, forward):
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    results = []
    for steps in ({}, {**LATENT}):
        if steps:
            steps['network'] = {**steps['network'], 'weight_lr': 20.0}
        model = quantized('conv', batches, bits=3)
        report = reconstruct(
            model,
            batches,
            quick(rounding='gptq', **steps),
            forward=forward,
            adapter=Adapter(),
            progress=False,
        )
        with torch.no_grad(), quantizing(model):
            results.append(model(batches[0]))
    assert report.units[-1].taken_back
    torch.testing.assert_close(results[0], results[1])


def test_varied_images_have_targets_of_their_own(quantized):
    batches = tiny_batches('conv', num_batches=2, batch_size=8)
    model = quantized('conv', batches)
    data = NetworkData(model, batches, Adapter(), variety=0.3)
    # Another teacher would see other images than the student.
    assert not data.probe().batches
    torch.manual_seed(0)
    batch = data.draw()
    assert batch.image_ids in (tuple(range(8)), tuple(range(8, 16)))
    with torch.no_grad(), float_only(model):
        found = batch.run()
    torch.testing.assert_close(found['cls'], batch.target['cls'])
    known = [target['cls'] for target in data.targets]
    assert not any(torch.equal(found['cls'], one) for one in known)


class NoOutputs(Adapter):
    def forward_heads(self, model, batch):
        raise NotImplementedError('this class has no heads')


def test_optional_steps_are_left_out(quantized, quick, forward, caplog):
    batches = tiny_batches('conv')
    for optional in (True, False):
        model = quantized('conv', batches)
        settings = quick(rounding='gptq', network_optional=optional, **LATENT)
        run = {'forward': forward, 'adapter': NoOutputs(), 'progress': False}
        if optional:
            report = reconstruct(model, batches, settings, **run)
            assert report.units[-1].name
            assert 'left out: this class has no heads' in caplog.text
        else:
            with pytest.raises(NotImplementedError):
                reconstruct(model, batches, settings, **run)


def test_channels_last_changes_no_more_than_roundoff(
    quantized, quick, forward
):
    """Roundings of two runs start from the same codes and see the same."""
    found = []
    for fast in (False, True):
        batches = tiny_batches('conv', num_batches=2, batch_size=4)
        model = quantized('conv', batches, bits=3)
        settings = {
            'straight_through': True,
            'drop_prob': 0.0,
            'weight_lr': 0.05,
            'channels_last': fast,
        }
        layouts = []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(
                    lambda m, *_, layouts=layouts: layouts.append(
                        m.weight.is_contiguous(
                            memory_format=torch.channels_last
                        )
                        and not m.weight.is_contiguous()
                    )
                )
        report = reconstruct(
            model,
            batches,
            quick(scope='block', network_steps=5, network=settings),
            forward=forward,
            adapter=Adapter(),
            progress=False,
        )
        assert any(layouts) == fast
        assert all(p.is_contiguous() for p in model.parameters())
        found.append(report.units[-1])
    assert found[1].loss_start == pytest.approx(found[0].loss_start, rel=1e-4)
    assert found[1].loss_end == pytest.approx(found[0].loss_end, rel=0.05)
