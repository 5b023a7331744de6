"""One function quantizes; one rebuilds what it wrote."""

import copy
import json

import pytest
import torch

from taskptq.engine.pipeline import quantize_model
from taskptq.engine.quantization_report import STATE_DIR
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import restore_model
from taskptq.export.checkpoint import QuantizedCheckpointError, load
from taskptq.registry import RECON_LOSSES, REWRITES


@pytest.fixture
def model(tiny_path):
    import importlib

    return importlib.import_module('tiny_task').TinyNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        {
            'inputs': list(torch.randn(4, 3, 8, 8, generator=generator)),
            'labels': [0] * 4,
        }
        for _ in range(2)
    ]


def logits(model, batch):
    with torch.no_grad():
        return torch.stack([p['logits'] for p in model.test_step(batch)])


def test_quantize_and_restore(model, batches, qconfig, tmp_path):
    other = copy.deepcopy(model)
    model.train()
    report = quantize_model(
        model,
        batches,
        recipe=Recipe.from_config(qconfig),
        work_dir=tmp_path,
        meta={'dataset_meta': {'classes': ('a', 'b')}},
    )
    assert not any(m.training for m in model.modules())
    assert (
        json.loads((tmp_path / 'quantization_report.json').read_text())
        == report
    )
    payload = load(tmp_path / 'quantized.pth')
    assert payload['meta']['dataset_meta'] == {'classes': ['a', 'b']}
    recipe = restore_model(payload, other)
    assert recipe['qconfig'] == report['recipe']['qconfig']
    for batch in batches:
        assert torch.equal(logits(model, batch), logits(other, batch))


def test_global_random_state_is_left_alone(model, batches, qconfig, tmp_path):
    settings = dict(steps=3, batch_size=2)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    quantize_model(
        model,
        batches,
        work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, reconstruction=settings),
    )
    assert torch.equal(torch.rand(3), expected)


def test_interrupted_run_goes_on(
    model, batches, qconfig, tmp_path, monkeypatch
):
    """Stopped after a unit and started again: the same file."""
    from taskptq.reconstruction.resume import UnitStates

    recipe = Recipe.from_config(
        qconfig, reconstruction=dict(scope='layer', steps=4, batch_size=2)
    )
    whole = quantize_model(
        copy.deepcopy(model),
        batches,
        recipe=recipe,
        work_dir=tmp_path / 'whole',
    )
    save = UnitStates.save

    def save_and_stop(self, index, *args):
        save(self, index, *args)
        if index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(UnitStates, 'save', save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(
            copy.deepcopy(model),
            batches,
            recipe=recipe,
            work_dir=tmp_path / 'cut',
        )
    assert (tmp_path / 'cut' / STATE_DIR).is_dir()
    monkeypatch.undo()
    again = quantize_model(
        copy.deepcopy(model), batches, recipe=recipe, work_dir=tmp_path / 'cut'
    )
    assert again['reconstruction']['resumed_units'] == 2
    assert again['digest'] == whole['digest']
    assert not (tmp_path / 'cut' / STATE_DIR).exists()


def test_a_rewrite_runs_first(
    model, batches, qconfig, tmp_path, registry_guard
):

    @REWRITES.register_module()
    class Recorder:
        def __call__(self, model, stats):
            stats.forward(model, stats.batches[0])
            return {'norms': isinstance(model.bn1, torch.nn.BatchNorm2d)}

    report = quantize_model(
        model,
        batches,
        work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, rewrites=[dict(type='Recorder')]),
    )
    assert report['rewrites'] == [{'norms': True}]
    assert report['recipe']['rewrites'] == [{'type': 'Recorder'}]


@pytest.mark.parametrize('where', ['reconstruction', 'loss'])
def test_own_loss_is_used(
    model, batches, qconfig, tmp_path, where, registry_guard
):
    seen = []

    @RECON_LOSSES.register_module()
    class CountingLoss:
        def __call__(self, quant_out, float_out, context):
            seen.append(context.step)
            return (quant_out - float_out).square().mean()

    loss = dict(type='CountingLoss')
    settings = dict(scope='layer', steps=2, batch_size=2)
    if where == 'reconstruction':
        recipe = Recipe.from_config(
            qconfig, reconstruction=dict(settings, loss=loss)
        )
    else:
        recipe = Recipe.from_config(
            qconfig, reconstruction=settings, loss=loss
        )
    report = quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    assert {0, 1} <= set(seen)
    assert report['recipe']['loss'] == loss


def test_network_scope_uses_the_adapter(model, batches, qconfig, tmp_path):
    settings = dict(scope='network', steps=2)
    report = quantize_model(
        model,
        batches,
        work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, reconstruction=settings),
    )
    assert len(report['reconstruction']['units']) == 1


def test_refusals(model, batches, qconfig, tmp_path):
    with pytest.raises(ValueError, match='without reconstruction'):
        Recipe.from_config(qconfig, loss=dict(type='MSEReconLoss'))
    with pytest.raises(ValueError, match='stepz'):
        Recipe.from_config(qconfig, reconstruction=dict(stepz=3))
    recipe = Recipe.from_config(qconfig)
    quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match='quantized already'):
        quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match='quantized already'):
        restore_model(load(tmp_path / 'quantized.pth'), model)


def test_pattern_of_another_model_is_a_misfit(
    model, batches, qconfig, tmp_path
):
    recipe = Recipe.from_config(dict(qconfig, keep_float=['body.3']))
    quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(QuantizedCheckpointError, match=r'body\.3'):
        restore_model(
            load(tmp_path / 'quantized.pth'),
            torch.nn.Sequential(torch.nn.Linear(3, 3)),
        )


class PairNet(torch.nn.Module):
    """Two pairs by name; an activation lies between those of one."""

    def __init__(self, norm=torch.nn.BatchNorm2d):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3)
        self.bn1 = norm(8)
        self.conv2 = torch.nn.Conv2d(8, 8, 3)
        self.bn2 = norm(8)
        self.fc = torch.nn.Conv2d(8, 4, 1)
        for number, module in enumerate((self.bn1, self.bn2), 1):
            module.running_mean.uniform_(-1, 1)
            module.running_var.fill_(0.5 * number)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x).relu())
        return self.fc(x)


def pair_net(norm=torch.nn.BatchNorm2d):
    torch.manual_seed(0)
    return PairNet(norm).eval()


def images():
    return [torch.randn(2, 3, 12, 12) for _ in range(2)]


def test_folds_are_checked_on_the_data_and_replayed(tmp_path, qconfig):
    model = pair_net()
    quantize_model(
        model, images(), recipe=Recipe.from_config(qconfig), work_dir=tmp_path
    )
    payload = load(tmp_path / 'quantized.pth')
    decisions = payload['structure']['decisions']
    assert decisions['folded'] == [['conv1', 'bn1']]
    assert 'bn2' in decisions['kept_norms']
    other = pair_net()
    restore_model(payload, other)
    x = images()[0]
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_one_file_fits_whatever_became_of_synced_norms(tmp_path, qconfig):
    from mmengine.model import revert_sync_batchnorm

    plain = pair_net()
    synced = pair_net(torch.nn.SyncBatchNorm)
    reverted = revert_sync_batchnorm(pair_net(torch.nn.SyncBatchNorm))
    assert type(reverted.bn1) not in (
        torch.nn.BatchNorm2d,
        torch.nn.SyncBatchNorm,
    )
    quantize_model(
        reverted,
        images(),
        recipe=Recipe.from_config(qconfig),
        work_dir=tmp_path,
    )
    payload = load(tmp_path / 'quantized.pth')
    assert payload['structure']['decisions']['folded'] == [['conv1', 'bn1']]
    x = images()[0]
    for other in (plain, synced):
        restore_model(payload, other)
        with torch.no_grad():
            assert torch.equal(reverted(x), other(x))


def test_a_refused_file_leaves_the_model_as_it_was(
    model, batches, qconfig, tmp_path
):
    from taskptq.export.schema import compute_digest

    other = copy.deepcopy(model)
    quantize_model(
        model, batches, recipe=Recipe.from_config(qconfig), work_dir=tmp_path
    )
    payload = dict(load(tmp_path / 'quantized.pth'))
    recipe = copy.deepcopy(payload['recipe'])
    # The weights' own grids, but not those of this recipe.
    recipe['qconfig']['weight']['num_bits'] = 3
    payload['recipe'] = recipe
    payload['digest'] = compute_digest(payload)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(QuantizedCheckpointError, match='bits'):
        restore_model(payload, other)
    after = other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda d: d.pop('folded'), 'decisions must be a dict'),
        (lambda d: d['folded'].append(['head', 'nowhere']), 'nowhere'),
        (lambda d: d['baked'].append('body.3'), 'body.3'),
    ],
)
def test_impossible_decisions_are_refused(
    model, batches, qconfig, tmp_path, change, words
):
    from taskptq.export.schema import compute_digest

    other = copy.deepcopy(model)
    quantize_model(
        model, batches, recipe=Recipe.from_config(qconfig), work_dir=tmp_path
    )
    payload = dict(load(tmp_path / 'quantized.pth'))
    payload['structure'] = copy.deepcopy(payload['structure'])
    change(payload['structure']['decisions'])
    payload['digest'] = compute_digest(payload)
    with pytest.raises(QuantizedCheckpointError, match=words):
        restore_model(payload, other)


def test_the_share_that_runs_quantized_is_everywhere(
    model, batches, qconfig, tmp_path
):
    report = quantize_model(
        model, batches, recipe=Recipe.from_config(qconfig), work_dir=tmp_path
    )
    found = json.loads((tmp_path / 'swap_report.json').read_text())
    stored = load(tmp_path / 'quantized.pth')['structure']['products']
    text = (tmp_path / 'swap_report.txt').read_text()
    assert report['swap']['share_of_macs'] == stored['share'] == 1.0
    assert found['products']['total'] == stored['total'] > 0
    assert text.splitlines()[0].startswith('100.0 % of')


class Branch(torch.nn.Module):
    """A mask head that only bright images reach."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 3)
        self.mask = torch.nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.body(x)
        return self.mask(x) if x.mean() > 5 else x


def test_a_branch_that_no_image_reached(tmp_path, qconfig):
    with pytest.raises(ValueError, match='mask'):
        quantize_model(
            Branch(),
            images(),
            work_dir=tmp_path,
            recipe=Recipe.from_config(qconfig),
        )
    recipe = Recipe.from_config(qconfig, calibration={'unreached': 'float'})
    model = Branch()
    quantize_model(model, images(), work_dir=tmp_path, recipe=recipe)
    payload = load(tmp_path / 'quantized.pth')
    assert 'mask' in payload['structure']['products']['left_float']
    other = Branch()
    restore_model(payload, other)
    bright = images()[0] + 100
    with torch.no_grad():
        assert torch.equal(model(bright), other(bright))


def test_two_runs_do_not_share_a_work_dir(model, batches, qconfig, tmp_path):
    from taskptq.reconstruction.state_folder import FolderInUseError, locked

    recipe = Recipe.from_config(qconfig)
    with (
        locked(tmp_path / STATE_DIR),
        pytest.raises(FolderInUseError, match='in use by another run'),
    ):
        quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    assert not list(tmp_path.glob('*.pth'))


def test_where_a_machine_keeps_its_cache_is_not_in_the_recipe(
    qconfig, tmp_path
):
    settings = {
        'steps': 3,
        'cache_dir': str(tmp_path),
        'cache_disk_bytes': 1 << 20,
    }
    recipe = Recipe.from_config(qconfig, reconstruction=settings)
    assert recipe.to_dict()['reconstruction'] == {'seed': 0, 'steps': 3}
    assert recipe.reconstruction['cache_dir'] == str(tmp_path)


def test_a_tensor_that_its_grid_cannot_hold_is_reported(tmp_path):
    from wild_net import WildNet

    batches = [torch.randn(4, 3, 8, 8)]
    model = WildNet().eval()
    report = quantize_model(
        model,
        batches,
        recipe=Recipe.from_config({'edge_bits': None}),
        work_dir=tmp_path,
        forward=lambda m, x: m(x),
    )
    (text,) = report['warnings']
    assert 'depthwise.input_quantizer' in text
    assert 'activation=dict(per_channel=True)' in text
