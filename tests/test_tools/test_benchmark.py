import importlib
import json
import sys

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.calibration import calibrate
from taskptq.core import (
    AffineQuantizer,
    LearnedRounding,
    LSQQuantizer,
    QuantSpec,
    dropping,
    enable,
    quantizing,
)
from taskptq.engine.pipeline import run_batch
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.testing import tiny_batches, tiny_model

QCONFIG = {
    'weight': {
        'type': 'AffineQuantizer',
        'num_bits': 4,
        'per_channel': True,
        'symmetric': False,
        'observer': {'type': 'MinMaxObserver'},
    },
    'activation': {
        'type': 'LSQQuantizer',
        'num_bits': 4,
        'symmetric': False,
        'observer': {'type': 'MinMaxObserver'},
    },
}


@pytest.fixture
def tools(repo_root, monkeypatch):
    """Import modules of tools/ as the tool itself does."""
    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    yield importlib.import_module
    for name in list(sys.modules):
        if name.split('.')[0] in ('benchmark', 'benchmarks'):
            del sys.modules[name]


@pytest.fixture
def calibrated():
    """A calibrated tiny model, and its batches."""
    model = tiny_model('conv').eval()
    batches = list(tiny_batches('conv'))
    prepare(model, QConfig.from_dict(QCONFIG))
    calibrate(model, batches, forward=run_batch)
    return model, batches


def ready(quantizer, x):
    quantizer.set_bounds(signed=bool((x < 0).any()))
    low = x.amin().reshape(1)
    high = x.amax().reshape(1)
    quantizer.set_range(low, high)
    quantizer.enabled = True
    return quantizer


@pytest.mark.parametrize('signed', [False, True])
def test_plain_quantizer_computes_what_the_fused_one_does(tools, signed):
    plain_kind = tools('benchmarks.reference_loop').PlainLSQ
    x = torch.randn(4, 3, 9, 9) if signed else torch.rand(4, 3, 9, 9)
    spec = QuantSpec(num_bits=4, symmetric=False)
    found = []
    for kind in (LSQQuantizer, plain_kind):
        quantizer = ready(kind(spec), x * 0.7)
        quantizer.scale.requires_grad_(True)
        value = x.clone().requires_grad_(True)
        out = quantizer(value)
        (
            out * torch.linspace(-1, 1, out.numel()).view_as(out)
        ).sum().backward()
        found.append((out, value.grad, quantizer.scale.grad))
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


def test_plain_rounding_computes_what_adaround_does(tools):
    plain_kind = tools('benchmarks.reference_loop').PlainRounding
    weight = torch.randn(6, 5, 3, 3)
    quantizer = AffineQuantizer(QuantSpec(num_bits=3, ch_axis=0))
    quantizer.set_bounds(signed=True)
    rows = weight.flatten(1)
    quantizer.set_range(rows.amin(dim=1), rows.amax(dim=1))
    found = []
    for kind in (LearnedRounding, plain_kind):
        rounding = kind(quantizer, weight)
        out = rounding()
        out.square().sum().backward()
        found.append((out, rounding.alpha.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-4)


def test_both_loops_see_the_same_inputs_and_targets(tools, calibrated):
    model, batches = calibrated
    config = ReconstructionConfig(steps=2, batch_size=len(batches[0]))
    sessions = tools('benchmarks.sessions')
    reference_loop = tools('benchmarks.reference_loop')
    unit = sessions.units_of(model, batches[0], config)[1]
    reference = reference_loop.ReferenceLoop(
        model, name=unit.name, num_calls=1, batches=batches, config=config
    )
    session = sessions.Session(model, unit, batches, config)
    with quantizing(reference.model):
        ((leaves, _),) = reference.fetch(batches[0])[0]
    args, _ = session.data._arguments('quant', 0, 0)
    ours = flatten(args)[0]
    torch.testing.assert_close(leaves[0], ours[0], rtol=1e-3, atol=1e-4)
    assert session.num_calls == 1
    session.close()


def test_plain_loop_learns(tools, calibrated):
    model, batches = calibrated
    before = [p.clone() for p in model.parameters()]
    config = ReconstructionConfig(steps=2, weight_lr=0.1, scale_lr=0.1)
    loop = tools('benchmarks.reference_loop').ReferenceLoop(
        model, name='layer1', num_calls=1, batches=batches, config=config
    )
    start = [r.alpha.detach().clone() for r in loop.roundings]
    seconds = loop.step()
    assert min(seconds) > 0
    assert len(start) == 2
    for rounding, alpha in zip(loop.roundings, start, strict=True):
        assert not torch.equal(rounding.alpha, alpha)
    # The model that is measured by our own loop stays as it was.
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_plain_drop_keeps_its_share_of_float_values(tools, calibrated):
    model, _ = calibrated
    plain = tools('benchmarks.reference_loop').plain_copy(model)
    enable(plain)
    quantizer = plain.layer1.conv2.input_quantizer
    x = torch.rand(100, 100)
    with dropping(plain, drop_prob=0.25):
        kept = (quantizer(x) == x).float().mean()
    assert kept == pytest.approx(0.25, abs=0.03)


def test_training_a_session_gives_its_time(tools, calibrated):
    model, batches = calibrated
    config = ReconstructionConfig(steps=3, batch_size=4)
    sessions = tools('benchmarks.sessions')
    units = sessions.units_of(model, batches[0], config)
    session = sessions.Session(model, units[-1], batches, config)
    result = session.train()
    session.close()
    assert result.steps == 3
    assert result.seconds > 0


def test_units_are_spread_over_the_depth(tools):
    spread = tools('benchmarks.reconstruction_speed').spread
    units = list(range(11))
    assert spread(units, count=3) == [0, 5, 10]
    assert spread(units, count=1) == [5]
    assert spread(units, count=None) == units
    assert spread(units, count=20) == units


def test_summary_counts_captures_once_for_all_units(tools):
    summarize = tools('benchmarks.reconstruction_speed').summarize
    rows = [
        {'ours': 0.1, 'reference_fetch': 0.5, 'reference_step': 0.2},
        {'ours': 0.3, 'reference_fetch': 1.5, 'reference_step': 0.4},
    ]
    found = summarize(
        rows, overhead=50.0, num_units=5, steps=100, fetches_per_unit=10
    )
    rate = found['steps_per_second']
    assert rate['ours'] == pytest.approx(1 / (0.2 + 0.1))
    assert rate['reference'] == pytest.approx(1 / 1.3)
    assert rate['reference_fetching_once_per_unit'] == pytest.approx(
        1 / (0.3 + 0.1)
    )
    assert found['ratio'] == pytest.approx(1.3 / 0.3)
    assert found['reached']


def test_models_are_timed_by_turns(tools, monkeypatch):
    eval_speed = tools('benchmarks.eval_speed')
    order = []

    def one_pass(model, batches):
        order.append(model)
        return float(len(order))

    monkeypatch.setattr(eval_speed, 'one_pass', one_pass)
    seconds = eval_speed.interleaved({'a': 'A', 'b': 'B'}, [], repeats=2)
    assert order == ['A', 'B'] * 3
    assert seconds == {'a': [3.0, 5.0], 'b': [4.0, 6.0]}


def test_peak_memory_is_a_high_water_mark(tools):
    peak_bytes = tools('benchmarks.memory').peak_bytes
    # More than what earlier tests of this process may have freed.
    block = torch.ones(peak_bytes() + (64 << 20), dtype=torch.uint8)
    during = peak_bytes()
    size = len(block)
    del block
    assert during > size
    # The kernel counts in steps of some pages.
    assert peak_bytes() > during - (4 << 20)


def test_random_images_repeat_themselves(tools):
    pytest.importorskip('mmdet')
    images = tools('benchmarks.memory').RandomImages(
        5, batch_size=2, size=(8, 12)
    )
    assert [len(batch['inputs']) for batch in images] == [2, 2, 1]
    first, again = images[0]['inputs'], images[0]['inputs']
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (3, 8, 12)
    assert not torch.equal(first[0], images[1]['inputs'][0])


def test_memory_refuses_a_budget_that_holds_everything(tools, monkeypatch):
    memory = tools('benchmarks.memory')
    monkeypatch.setattr(
        memory,
        '_run_worker',
        lambda arguments: {'spilled_bytes': 0, 'peak_bytes': 1},
    )
    with pytest.raises(RuntimeError, match='smaller --budget-mib'):
        memory.measure(
            'c.py',
            'c.pth',
            recipe='w4a4',
            num_images=4,
            budget_mib=8,
            steps=1,
            batch_size=2,
            script='benchmark.py',
        )


@pytest.mark.slow
@pytest.mark.data('bccd')
def test_eval_speed_writes_what_it_measured(
    tools, repo_root, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(repo_root)
    benchmark = tools('benchmarks.__main__')
    out = tmp_path / 'speed.json'
    result = benchmark.main(
        [
            'eval-speed',
            benchmark.CONFIG,
            benchmark.CHECKPOINT,
            '--repeats',
            '1',
            '--limit',
            '4',
            '--calibration-images',
            '4',
            '--out',
            str(out),
        ]
    )
    written = json.loads(out.read_text())
    assert written['ratio'] == pytest.approx(result['ratio'])
    assert written['num_images'] == 4
    assert {'command', 'commit', 'environment'} <= set(written)
    assert 'ratio' in capsys.readouterr().out


def test_a_step_is_compared_with_the_float_block(tools, calibrated):
    model, batches = calibrated
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = ReconstructionConfig(steps=3, batch_size=4, skip_below=0.0)
    step_limit = tools('benchmarks.step_limit')
    units = tools('benchmarks.sessions').units_of(model, batches[0], config)
    row = step_limit.measure_unit(
        model, units[1], batches, config=config, rounds=1
    )
    assert row['unit'] == units[1].name
    assert row['ratio'] == row['ours'] / row['float'] > 0
    assert 0 < row['pass'] < row['ours']
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_float_block_gets_gradients_at_inputs_and_weights(
    tools, calibrated
):
    model, batches = calibrated
    config = ReconstructionConfig(steps=2, batch_size=4)
    sessions = tools('benchmarks.sessions')
    unit = sessions.units_of(model, batches[0], config)[1]
    session = sessions.Session(model, unit, batches, config)
    session.data.prepare_sampling()
    plain = tools('benchmarks.step_limit').FloatStep(session)
    plain.run()
    step_limit = tools('benchmarks.step_limit')
    found = step_limit.quantized_tensors(session)
    session.close()
    layers = [unit.module.conv1, unit.module.conv2]
    shapes = [tuple(x.shape) for x in found]
    assert all(tuple(layer.weight.shape) in shapes for layer in layers)
    inputs = [s[1] for s in shapes if s[0] == config.batch_size]
    assert inputs == [layer.in_channels for layer in layers]
    assert plain.module.conv1.weight.grad.abs().sum() > 0
    (args, _), _ = plain.calls[0]
    assert flatten(args)[0][0].grad.abs().sum() > 0


def test_lines_name_units_that_are_far_from_the_limit(tools):
    step_limit = tools('benchmarks.step_limit')
    row = {'unit': 'stem', 'ours': 0.003, 'float': 0.002, 'ratio': 1.5}
    row['pass'] = 0.0001
    text = step_limit.lines({'minibatch': 8, 'units': [row]})
    assert text[2].split() == ['stem', '3.0', '2.0', '1.50', '0.10', '10']
