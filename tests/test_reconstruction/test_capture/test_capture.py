import pytest
import torch
from torch import nn

from taskptq.calibration.batches import batch_length
from taskptq.core import float_only, quantizing
from taskptq.hosts import registry as mapping
from taskptq.reconstruction.capture.capture import Source
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.testing import TINY_MODELS, TinyBlock, tiny_batches


class Chain(nn.Sequential):
    def __init__(self, *between):
        first, last = TinyBlock(3, 6), TinyBlock(6, 6, stride=2)
        super().__init__(first, *between, last)


class InPlace(nn.Module):
    """Changes a block's output before the next reads it."""

    def __init__(self):
        super().__init__()
        self.first = TinyBlock(3, 6)
        self.second = TinyBlock(6, 6)
        self.third = TinyBlock(6, 6)

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        x.mul_(2)
        return self.third(x) + y


class Pyramid(nn.Module):
    """Two levels, each read by several; one reader takes both."""

    def __init__(self):
        super().__init__()
        self.bottom = TinyBlock(3, 6)
        self.top = TinyBlock(6, 6, stride=2)
        self.cls = TinyBlock(6, 4)
        self.reg = TinyBlock(6, 4)
        self.merge = Merge()

    def forward(self, x):
        bottom = self.bottom(x)
        levels = (bottom, self.top(bottom))
        heads = [head(y) for y in levels for head in (self.cls, self.reg)]
        return [*heads, self.merge(levels, gain=0.5)]


class Merge(TinyBlock):
    def __init__(self):
        super().__init__(6, 6)

    def forward(self, levels, *, gain):
        up = nn.functional.interpolate(levels[1], levels[0].shape[-2:])
        return {'sum': super().forward(levels[0] + gain * up)}


class FakeExtractor(nn.Module):
    """Cuts patches out, as a region-of-interest layer does."""

    def forward(self, x, rois):
        return torch.stack(
            [x[0, :, i : i + 2, i : i + 2] for i in rois.tolist()]
        )


class TwoStage(nn.Module):
    """The rows that the head sees depend on the features."""

    def __init__(self):
        super().__init__()
        self.backbone = TinyBlock(3, 6)
        self.extractor = FakeExtractor()
        self.head = TinyBlock(6, 4)

    def forward(self, x):
        x = self.backbone(x)
        rois = x.mean(dim=(0, 1, 3)).argsort()[:3].clamp(max=6)
        return self.head(self.extractor(x, rois=rois * self.shift()))

    def shift(self):
        # Stands for other boxes of a quantized model.
        return int(not self.backbone.conv1.weight_quantizer.enabled)


@pytest.fixture
def two_stage(monkeypatch, quantized, random_images):
    monkeypatch.setitem(
        mapping.REPLAYED_INPUTS, mapping.dotted(FakeExtractor), 'rois'
    )
    torch.manual_seed(1)
    batches = random_images(batch_size=1)
    return quantized(TwoStage(), batches), batches


def is_captured(plans):
    return [bool(p.captured(i)) for i, p in enumerate(plans)]


def run_all(capturer):
    """Go through all units as a reconstruction would, without training."""
    capturer.capture_float()
    for index, plan in enumerate(capturer.plans):
        if index and plan.captured(index):
            capturer.capture_quant(index)
        data = unit_data(capturer, index)
        data.compute('float', keep=None)
        data.compute('quant', keep=None)


def unit_data(capturer, index):
    return UnitData(capturer, index, cache=capturer.cache, rows_per_image=8)


def outputs_of(model, module, batch):
    """What a module gives in the whole model; several calls in a list."""
    outputs = []
    handle = module.register_forward_hook(
        lambda _m, _a, out: outputs.append(flatten(out)[0][0].clone())
    )
    with torch.no_grad():
        model(batch)
    handle.remove()
    return outputs


def assert_equals_model(capturer, model):
    """Every unit output in the cache is that of a run of the whole model."""
    for stream, mode in (('float', float_only), ('quant', quantizing)):
        for index, plan in enumerate(capturer.plans):
            for number, batch in enumerate(capturer.batches):
                with mode(model):
                    expected = outputs_of(model, plan.unit.module, batch)
                for call, out in enumerate(expected):
                    key = (stream, Source('out', index, call, 0), number)
                    torch.testing.assert_close(
                        capturer.cache.get(key), out, rtol=1e-5, atol=1e-5
                    )


def test_chain_needs_no_further_pass(
    quantized, plan, random_images, count_calls
):
    batches = random_images(num_batches=3)
    model = quantized(Chain(TinyBlock(6, 6)), batches)
    capturer = plan(model, batches)
    assert is_captured(capturer.plans) == [True, False, False]
    calls = count_calls(model)
    run_all(capturer)
    assert len(calls) == 3
    assert capturer.num_passes == 1
    assert_equals_model(capturer, model)


def test_operation_between_breaks_the_chain(quantized, plan, random_images):
    batches = random_images()
    model = quantized(Chain(nn.AvgPool2d(2)), batches)
    capturer = plan(model, batches)
    assert is_captured(capturer.plans) == [True, True]
    run_all(capturer)
    assert capturer.num_passes == 2
    assert_equals_model(capturer, model)


def test_in_place_change_breaks_the_link(quantized, plan, random_images):
    batches = random_images()
    model = quantized(InPlace(), batches)
    capturer = plan(model, batches)
    assert is_captured(capturer.plans) == [True, False, True]
    run_all(capturer)
    assert_equals_model(capturer, model)


def test_several_readers_of_several_levels(quantized, plan, random_images):
    batches = random_images()
    model = quantized(Pyramid(), batches)
    capturer = plan(model, batches)
    names = [p.unit.name for p in capturer.plans]
    assert names == ['bottom', 'top', 'cls', 'reg', 'merge']
    assert is_captured(capturer.plans) == [True, False, False, False, False]
    # A head is called once for each level.
    assert [len(p.calls) for p in capturer.plans] == [1, 1, 2, 2, 1]
    assert capturer.plans[4].calls == [
        [Source('out', 0, 0, 0), Source('out', 1, 0, 0)]
    ]
    run_all(capturer)
    assert capturer.num_passes == 1
    assert_equals_model(capturer, model)


def test_keyword_arguments_and_other_objects_survive(
    quantized, plan, random_images
):
    batches = random_images()
    capturer = plan(quantized(Pyramid(), batches), batches)
    capturer.capture_float()
    _, kwargs = capturer.skeletons[4, 0, 1]
    assert kwargs == {'gain': 0.5}


def test_rows_chosen_by_the_float_model_are_replayed(two_stage, plan):
    model, batches = two_stage
    capturer = plan(model, batches)
    assert [p.replay for p in capturer.plans] == [None, ('extractor', 0)]
    run_all(capturer)
    source = Source('in', 1, 0, 0)
    for number, batch in enumerate(batches):
        with torch.no_grad():
            with float_only(model):
                x = model.backbone(batch)
            rois = x.mean(dim=(0, 1, 3)).argsort()[:3].clamp(max=6)
            with quantizing(model):
                x_hat = model.backbone(batch)
        expected = model.extractor(x_hat, rois)
        found = capturer.cache.get(('quant', source, number))
        assert torch.equal(found, expected)
        other = model.extractor(x_hat, rois * 0)
        assert not torch.equal(found, other)
        with quantizing(model), torch.no_grad():
            model(batch)  # outside of captures the model chooses itself


def test_rows_that_the_models_code_mixes_with_its_own_are_not_replayed(
    two_stage, plan, monkeypatch
):
    def forward(self, x):
        x = self.backbone(x)
        rois = torch.arange(2 + self.shift())
        patches = self.extractor(x, rois=rois)
        return self.head(patches + rois.to(x).reshape(-1, 1, 1, 1))

    monkeypatch.setattr(TwoStage, 'forward', forward)
    model, batches = two_stage
    capturer = plan(model, batches)
    assert capturer.plans[1].replay == ('extractor', 0)
    run_all(capturer)
    source = Source('in', 1, 0, 0)
    for number in range(len(batches)):
        assert capturer.cache.shape(('float', source, number))[0] == 3
        assert capturer.cache.shape(('quant', source, number))[0] == 2
    assert capturer.num_passes == 2


def test_other_errors_of_a_captured_model_are_raised(
    two_stage, plan, monkeypatch
):
    model, batches = two_stage
    capturer = plan(model, batches)
    capturer.capture_float()

    def forward(self, x):
        self.extractor(self.backbone(x), rois=torch.arange(3))
        raise RuntimeError('broken')

    monkeypatch.setattr(TwoStage, 'forward', forward)
    with pytest.raises(RuntimeError, match='broken'):
        capturer.capture_quant(1)


def test_without_a_replay_rows_differ(two_stage, plan, monkeypatch):
    model, batches = two_stage
    monkeypatch.delitem(mapping.REPLAYED_INPUTS, mapping.dotted(FakeExtractor))
    capturer = plan(model, batches)
    assert capturer.plans[1].replay is None
    run_all(capturer)
    source = Source('in', 1, 0, 0)
    found = capturer.cache.get(('quant', source, 0))
    assert torch.equal(found[0], found[1])  # all at place 0


def test_passes_stop_after_the_last_wanted_unit(
    quantized, plan, random_images, count_calls
):
    batches = random_images()
    model = quantized(
        Chain(nn.AvgPool2d(2), TinyBlock(6, 6), nn.ReLU()), batches
    )
    capturer = plan(model, batches)
    calls = {
        name: count_calls(child) for name, child in model.named_children()
    }
    capturer.capture_float()
    assert [len(c) for c in calls.values()] == [2, 2, 2, 2, 2]
    capturer.capture_quant(1)
    assert [len(c) for c in calls.values()] == [4, 4, 4, 2, 2]


def test_hooks_and_modes_are_gone_after_an_error(
    quantized, plan, random_images
):
    batches = random_images()
    model = quantized(Chain(), batches)
    capturer = plan(model, batches)

    def broken(model, batch):
        model(batch)
        raise OSError('unreadable image')

    capturer.forward = broken
    model.train()
    with pytest.raises(OSError, match='unreadable'):
        capturer.capture_float()
    capturer.forward = lambda model, batch: model(batch)
    capturer.capture_float()
    capturer.forward = broken
    capturer.capture_quant(0)  # stops early, before the error
    model[0].forward = lambda x: broken(nn.Identity(), x)
    with pytest.raises(OSError, match='unreadable'):
        capturer.capture_quant(0)
    assert model.training
    hooks = [m for m in model.modules() if m._forward_pre_hooks]
    assert hooks == []


@pytest.mark.parametrize('name', TINY_MODELS)
@pytest.mark.parametrize('scope', ['layer', 'block'])
def test_tiny_models_run_the_model_rarely(
    name, scope, quantized, plan, count_calls
):
    model, batches = quantized(name), tiny_batches(name, num_batches=3)
    calls = count_calls(model)
    capturer = plan(model, batches, scope=scope)
    assert len(calls) == 2  # one batch, for names and for links
    run_all(capturer)
    breaks = sum(is_captured(capturer.plans)[1:])
    assert len(calls) == 2 + 3 * (1 + breaks)
    assert breaks < len(capturer.plans) or scope == 'layer'
    assert_equals_model_outputs(capturer, model)


def assert_equals_model_outputs(capturer, model):
    index = len(capturer.plans) - 1
    for number, batch in enumerate(capturer.batches):
        for stream, mode in (('float', float_only), ('quant', quantizing)):
            with mode(model), torch.no_grad():
                expected = model(batch)
            key = (stream, Source('out', index, 0, 0), number)
            torch.testing.assert_close(
                capturer.cache.get(key), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ('batch', 'length'),
    [
        (torch.zeros(3, 2), 3),
        ({'inputs': [1, 2], 'data_samples': [1, 2]}, 2),
        ({'inputs': {'sam': [1, 2, 3], 'img': torch.zeros(3, 1)}}, 3),
        ({'inputs': {}}, 0),
        ([torch.zeros(5, 1), None], 5),
        ('name', 0),
        ([], 0),
    ],
)
def test_batch_length(batch, length):
    assert batch_length(batch) == length
