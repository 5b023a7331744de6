"""QATHook inside mmengine's Runner, on the tiny task without a teacher."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from taskptq.core.switches import quantizers
from taskptq.engine.checkpoint_file import TRAINING_KEY, read_checkpoint
from taskptq.export import load
from taskptq.export.checkpoint import is_quantized
from taskptq.qat import checks as qat_checks

LABELED = [
    dict(type='TinyLoad'),
    dict(type='TinyLoadAnnotations'),
    dict(type='TinyPack', needs_labels=True),
]
LR = 0.01


@pytest.fixture
def hook():
    return dict(
        qconfig=dict(
            weight=dict(type='LSQQuantizer', num_bits=4, per_channel=True),
            activation=dict(
                type='LSQQuantizer', num_bits=4, learn_zero_point=True
            ),
            edge_bits=None,
        ),
        calibration=dict(num_images=8),
    )


@pytest.fixture
def make(tiny_config, tmp_path):
    """Build trainers of the tiny task: QATHook and others as given."""
    from mmengine.runner import Runner

    count = iter(range(100))

    def build(load_from=None, *, hook=None, work='work', others=(), **changes):
        config = copy.deepcopy(tiny_config)
        config.experiment_name = f'{tmp_path.name}_qat_{next(count)}'
        config.load_from = None if load_from is None else str(load_from)
        config.work_dir = str(tmp_path / work)
        config.custom_hooks = [h for h in others if isinstance(h, dict)]
        if hook is not None:
            config.custom_hooks.append(
                dict(type='taskptq.QATHook', **copy.deepcopy(hook))
            )
        config.train_dataloader.dataset.dataset.pipeline = LABELED
        config.default_hooks = dict(
            logger=None, checkpoint=dict(type='CheckpointHook', interval=1)
        )
        config.optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=LR, weight_decay=0.1),
            paramwise_cfg=dict(custom_keys=dict(stem=dict(lr_mult=0.1))),
        )
        config.param_scheduler = [
            dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=3),
            dict(type='MultiStepLR', milestones=[1], gamma=0.5),
        ]
        config.randomness = dict(seed=0)
        config.merge_from_dict(changes)
        runner = Runner.from_cfg(config)
        for built in others:
            if not isinstance(built, dict):
                runner.register_hook(built)
        return runner

    return build


def witness(function, *, event='before_train'):
    """A hook that calls a function at an event, after QATHook."""
    from mmengine.hooks import Hook

    class Seen(Hook):
        priority = 'LOW'

    setattr(Seen, event, lambda self, runner, **kwargs: function(runner))
    return Seen()


def weights_of(path):
    return read_checkpoint(path)[TRAINING_KEY]['weights']


def test_training_learns_weights_and_grids(
    make, hook, float_checkpoint, predictions
):
    first = {}
    seen = witness(
        lambda runner: first.update(copy.deepcopy(runner.model.state_dict()))
    )
    runner = make(float_checkpoint, hook=hook, others=[seen])
    runner.train()
    work_dir = Path(runner.work_dir)
    after = weights_of(work_dir / 'epoch_2.pth')
    assert after.keys() == first.keys()
    for name in (
        'stem.weight',
        'body.0.bias',
        'head.weight',
        'stem.weight_quantizer.scale',
        'body.3.input_quantizer.scale',
        'stem.input_quantizer.offset',
    ):
        assert not torch.equal(after[name], first[name]), name
        assert bool(after[name].isfinite().all())
    # Each norm was seen to follow its layer, and is folded.
    assert not [name for name in after if 'running' in name]
    report = json.loads((work_dir / 'quantization_report.json').read_text())
    assert report['recipe']['training']['stage'] == 2
    assert report['freeze']['num_weights'] == 4
    runner.test()
    trained = predictions()
    again = make(
        work_dir / 'quantized.pth',
        work='test',
        others=[dict(type='taskptq.PTQHook')],
    )
    again.test()
    assert torch.equal(predictions(), trained)


@pytest.mark.parametrize('name', ['w1a1', 'w1.6a4', 'w2a4_planes'])
def test_levels_are_trained(make, float_checkpoint, predictions, name):
    """Weights and inputs of one bit, with first and last layers of 8."""
    first = {}
    seen = witness(
        lambda runner: first.update(copy.deepcopy(runner.model.state_dict()))
    )
    pulled = dict(qconfig=dict(weight=dict(pull='flip'), edges=['stem']))
    given = dict(
        recipe=[f'{name}_lsq-qat', pulled], calibration=dict(num_images=8)
    )
    runner = make(float_checkpoint, hook=given, others=[seen])
    runner.train()
    runner.test()
    trained = predictions()
    work_dir = Path(runner.work_dir)
    after = weights_of(work_dir / 'epoch_2.pth')
    levels = {key for key in after if key.endswith('coefficients')}
    assert any('weight_quantizer' in key for key in levels)
    assert any('input_quantizer' in key for key in levels) == ('a1' in name)
    for key in levels:
        assert not torch.equal(after[key], first[key]), key
        assert bool(after[key].isfinite().all())
    packed = load(work_dir / 'quantized.pth')['weights']
    bits = {key: one['num_bits'] for key, one in packed.items()}
    assert bits['stem.weight'] == 8
    assert min(bits.values()) == (1 if 'w1a' in name else 2)
    again = make(
        work_dir / 'quantized.pth',
        work='test',
        others=[dict(type='taskptq.PTQHook')],
    )
    again.test()
    assert torch.equal(predictions(), trained)
    checkpoint = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    key = sorted(levels)[0]
    checkpoint[TRAINING_KEY]['weights'][key] = -after[key]
    torch.save(checkpoint, work_dir / 'bad.pth')
    with pytest.raises(ValueError, match=r'levels (that|without|whose)'):
        make(work_dir / 'bad.pth', hook={}, work='bad').test()


def test_a_norm_that_stays_keeps_its_statistics(
    make, hook, float_checkpoint, monkeypatch
):
    import tiny_task
    from torch import nn

    base = tiny_task.TinyNet.__init__

    def build(self, **kwargs):
        base(self, **kwargs)
        self.stem = nn.Sequential(self.stem, nn.ReLU())

    # No fold goes through the activation in between.
    monkeypatch.setattr(tiny_task.TinyNet, '__init__', build)
    content = torch.load(float_checkpoint, weights_only=True)
    content['state_dict'] = {
        name.replace('stem.', 'stem.0.'): value
        for name, value in content['state_dict'].items()
    }
    torch.save(content, float_checkpoint)
    first = {}
    seen = witness(
        lambda runner: first.update(copy.deepcopy(runner.model.state_dict()))
    )
    runner = make(
        float_checkpoint,
        hook=hook,
        others=[seen],
        train_cfg=dict(max_epochs=1),
    )
    runner.train()
    after = weights_of(Path(runner.work_dir) / 'epoch_1.pth')
    norms = [name for name in after if 'running' in name]
    assert norms == ['bn1.running_mean', 'bn1.running_var']
    assert all(torch.equal(after[name], first[name]) for name in norms)


def test_validation_is_of_the_quantized_model(make, hook, float_checkpoint):
    levels = []

    def look(runner):
        assert not runner.model.training
        assert all(q.enabled for _, q in quantizers(runner.model))
        weight = runner.model.body[3].quantized_weight()
        levels.append(max(len(row.unique()) for row in weight.flatten(1)))

    runner = make(
        float_checkpoint,
        hook=hook,
        others=[witness(look, event='after_val_epoch')],
    )
    runner.train()
    assert len(levels) == 2
    assert max(levels) <= 16


def test_resume_gives_the_same_weights(make, hook, float_checkpoint):
    whole = make(float_checkpoint, hook=hook, work='whole')
    whole.train()
    folder = Path(whole.work_dir)
    resumed = make(
        folder / 'epoch_1.pth', hook=hook, work='resumed', resume=True
    )
    resumed.train()
    expected = weights_of(folder / 'epoch_2.pth')
    found = weights_of(Path(resumed.work_dir) / 'epoch_2.pth')
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    groups = [runner.optim_wrapper.param_groups for runner in (whole, resumed)]
    for one, two in zip(*groups, strict=True):
        assert one['lr'] == two['lr']
    packed = [
        torch.load(Path(runner.work_dir) / 'quantized.pth', weights_only=True)
        for runner in (whole, resumed)
    ]
    assert packed[0]['digest'] == packed[1]['digest']


def test_parameters_of_quantizers_have_their_groups(
    make, hook, float_checkpoint
):
    found = {}

    def look(runner):
        names = {id(p): name for name, p in runner.model.named_parameters()}
        magnitudes = {
            name: float(p.detach().abs().mean())
            for name, p in runner.model.named_parameters()
            if p.numel()
        }
        for group in runner.optim_wrapper.optimizer.param_groups:
            for parameter in group['params']:
                name = names[id(parameter)]
                found[name] = (group, magnitudes[name])
        found['schedulers'] = runner.param_schedulers
        found['wrapper'] = runner.optim_wrapper

    hook['lr_mult'] = dict(offset=3.0)
    make(
        float_checkpoint,
        hook=hook,
        others=[witness(look)],
        train_cfg=dict(max_epochs=1),
    ).train()
    schedulers = found.pop('schedulers')
    wrapper = found.pop('wrapper')
    assert [s.optimizer is wrapper for s in schedulers] == [True, True]
    group, magnitude = found['stem.weight_quantizer.scale']
    assert group['initial_lr'] == pytest.approx(LR * 0.1 * 10 * magnitude)
    assert group['weight_decay'] == 0
    group, _ = found['body.3.input_quantizer.offset']
    assert group['initial_lr'] == pytest.approx(LR * 3 * 15)
    group, _ = found['stem.weight']
    assert group['initial_lr'] == pytest.approx(LR * 0.1)
    assert group['weight_decay'] == 0.1
    # The warm-up of the rebuilt schedulers has begun.
    group, _ = found['head.weight']
    assert group['initial_lr'] == LR
    assert {'stem.bias', 'body.0.bias'} <= set(found)


def test_sgd_has_no_relative_rates(make, hook, float_checkpoint):
    rates = {}

    def look(runner):
        for group in runner.optim_wrapper.optimizer.param_groups:
            rates[len(group['params'])] = group['initial_lr']

    make(
        float_checkpoint,
        hook=hook,
        others=[witness(look)],
        optim_wrapper=dict(_delete_=True, optimizer=dict(type='SGD', lr=LR)),
        train_cfg=dict(max_epochs=1),
    ).train()
    # One group of all weights, and one for each parameter of a quantizer.
    assert len(rates) == 2
    assert set(rates.values()) == {LR}


def test_a_frozen_layer_trains_its_grids_only(
    make, hook, float_checkpoint, monkeypatch
):
    import tiny_task

    base = tiny_task.TinyNet.train

    def train(self, mode=True):
        base(self, mode)
        for parameter in self.stem.parameters():
            parameter.requires_grad_(False)
        return self

    monkeypatch.setattr(tiny_task.TinyNet, 'train', train)
    first = {}
    seen = witness(
        lambda runner: first.update(copy.deepcopy(runner.model.state_dict()))
    )
    runner = make(float_checkpoint, hook=hook, others=[seen])
    runner.train()
    after = weights_of(Path(runner.work_dir) / 'epoch_2.pth')
    assert torch.equal(after['stem.weight'], first['stem.weight'])
    name = 'stem.weight_quantizer.scale'
    assert not torch.equal(after[name], first[name])


def test_a_training_checkpoint_is_frozen_and_tested(
    make, hook, float_checkpoint, predictions
):
    runner = make(float_checkpoint, hook=hook)
    runner.train()
    runner.test()
    trained = predictions()
    path = Path(runner.work_dir) / 'epoch_2.pth'
    tester = make(path, hook={}, work='test')
    tester.test()
    assert torch.equal(predictions(), trained)
    written = Path(tester.work_dir) / 'quantized.pth'
    assert is_quantized(torch.load(written, weights_only=True))
    # Without the hook nobody evaluates a model that it fits badly.
    with pytest.raises(AttributeError):
        make(path, work='bare').test()


def test_a_float_checkpoint_is_tested_as_it_is(
    make, hook, float_checkpoint, predictions
):
    make(float_checkpoint, work='bare').test()
    before = predictions()
    runner = make(float_checkpoint, hook=hook)
    runner.test()
    assert torch.equal(predictions(), before)
    assert not (Path(runner.work_dir) / 'quantized.pth').exists()


@pytest.mark.parametrize(
    ('kind', 'words'), [('taskptq.PTQHook', 'PTQHook'), ('EMAHook', 'EMAHook')]
)
def test_other_hooks_are_refused(make, hook, float_checkpoint, kind, words):
    runner = make(float_checkpoint, hook=hook, others=[dict(type=kind)])
    with pytest.raises(ValueError, match=f'cannot train with {words}'):
        runner.train()


def test_masks_are_refused():
    from taskptq.qat.hook import QATHook

    with pytest.raises(ValueError, match='sparsity is for PTQHook'):
        QATHook(qconfig={'sparsity': {'rate': 0.5}})


def test_several_processes_are_refused(
    make, hook, float_checkpoint, monkeypatch
):
    monkeypatch.setattr(qat_checks, 'get_world_size', lambda: 2)
    with pytest.raises(ValueError, match='one process'):
        make(float_checkpoint, hook=hook).train()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(compile=True), 'compile'),
        (dict(resume=True), 'without resume'),
    ],
)
def test_runners_are_refused(make, hook, float_checkpoint, changes, words):
    with pytest.raises(ValueError, match=words):
        make(float_checkpoint, hook=hook, **changes).train()


def test_hooks_that_cannot_train_are_refused(make, hook, float_checkpoint):
    with pytest.raises(ValueError, match='needs qconfig'):
        make(float_checkpoint, hook={}).train()
    hook['stage'] = 1
    with pytest.raises(ValueError, match='has none: train with stage=2'):
        make(float_checkpoint, hook=hook).train()
    hook |= dict(stage=2, distillation={})
    with pytest.raises(ValueError, match='needs a DETR'):
        make(float_checkpoint, hook=hook).train()


def test_a_quantized_file_is_refused(make, hook, float_checkpoint):
    runner = make(float_checkpoint, hook=hook, train_cfg=dict(max_epochs=1))
    runner.train()
    path = Path(runner.work_dir) / 'quantized.pth'
    with pytest.raises(ValueError, match='cannot start from a quantized'):
        make(path, hook=hook).train()


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder that outlives one test."""
    return tmp_path_factory.mktemp('qat')


@pytest.fixture
def training_file(make, hook, float_checkpoint, kept):
    """The content of a training's checkpoint; trained once."""
    path = kept / 'epoch_1.pth'
    if not path.is_file():
        runner = make(
            float_checkpoint, hook=hook, train_cfg=dict(max_epochs=1)
        )
        runner.train()
        shutil.copy(Path(runner.work_dir) / 'epoch_1.pth', path)
    return torch.load(path, weights_only=False)


GRID = 'stem.weight_quantizer'


def recipe_of(entry):
    return entry['recipe']['qconfig']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda e: recipe_of(e)['activation']['observer'].update(
                type='stranger_module.Observer'
            ),
            'custom_imports',
        ),
        (
            lambda e: recipe_of(e).update(
                overrides=[
                    dict(pattern='stem', weight=dict(type='pydoc.pipepager'))
                ]
            ),
            'custom_imports',
        ),
        (lambda e: recipe_of(e).update(weight=5), 'weight'),
        (lambda e: e['recipe'].pop('qconfig'), 'no recipe.qconfig'),
        (lambda e: e['recipe']['training'].update(stage=7), 'stage=7'),
        (lambda e: e.update(recipe=None), 'no recipe'),
        (lambda e: e.update(weights=[1]), 'no weights'),
        (lambda e: e.update(teacher=3), 'teacher'),
        (lambda e: e['weights'].update({'stem.weight': 1}), 'not a tensor'),
        (
            lambda e: e['weights'].update({'stem.weight': torch.ones(2)}),
            'size mismatch',
        ),
        (
            lambda e: e['weights']['stem.weight'].fill_(float('nan')),
            'infinity in stem.weight',
        ),
        (lambda e: e['weights'][f'{GRID}.scale'].neg_(), 'scale that is'),
        (
            lambda e: e['weights'][f'{GRID}.zero_point'].add_(1000),
            'zero_point',
        ),
        (
            lambda e: e['weights'][f'{GRID}.grid'].mul_(1000),
            'levels instead of',
        ),
    ],
)
def test_an_altered_training_checkpoint_is_refused(
    make, training_file, tmp_path, monkeypatch, change, words
):
    mark = tmp_path / 'imported'
    (tmp_path / 'stranger_module.py').write_text(
        f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    change(training_file[TRAINING_KEY])
    path = tmp_path / 'altered.pth'
    torch.save(training_file, path)
    with pytest.raises(ValueError, match=words) as error:
        make(path, hook={}, work='test').test()
    assert '\n' not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize('entry', [None, 3, {}, dict(schema=1)])
def test_an_entry_of_the_wrong_shape(make, float_checkpoint, tmp_path, entry):
    content = torch.load(float_checkpoint, weights_only=True)
    path = tmp_path / 'altered.pth'
    torch.save({**content, TRAINING_KEY: entry}, path)
    with pytest.raises(ValueError, match='training checkpoint'):
        make(path, hook={}).test()


def test_a_schema_is_a_whole_number():
    from taskptq.qat.checkpoint import check_entry

    for schema in (True, 1.0, '1' * 10**6):
        with pytest.raises(ValueError, match='has schema') as error:
            check_entry({'schema': schema})
        assert len(str(error.value)) < 300


def test_other_bits_are_refused(make, hook, float_checkpoint):
    runner = make(float_checkpoint, hook=hook, train_cfg=dict(max_epochs=1))
    runner.train()
    path = Path(runner.work_dir) / 'epoch_1.pth'
    hook['qconfig']['weight']['num_bits'] = 2
    with pytest.raises(ValueError, match='config in qconfig'):
        make(path, hook=hook, resume=True).train()
    with pytest.raises(ValueError, match='16 levels instead of 4 in'):
        make(path, hook=hook, work='two').train()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(stage=3), 'stage=3'),
        (dict(lr_mult=dict(bias=1)), "lr_mult has unknown key 'bias'"),
        (dict(lr_mult=-1), 'lr_mult=-1: give a number from 0'),
        (dict(lr_mult=dict(scale='10')), "lr_mult.scale='10'"),
        (dict(lr_mult=float('nan')), 'lr_mult=nan'),
        (dict(lr_mult=[1]), r'lr_mult=\[1\]'),
    ],
)
def test_impossible_settings(hook, changes, words):
    from taskptq.qat.hook import QATHook

    with pytest.raises(ValueError, match=words):
        QATHook(**{**hook, **changes})


@pytest.mark.parametrize('bits', [2, 3, 4])
@pytest.mark.parametrize(
    ('method', 'aligned', 'distilled'),
    [
        ('lsq', False, False),
        ('da', True, False),
        ('fqm', False, True),
        ('drd', True, True),
    ],
)
def test_recipes_have_their_parts(bits, method, aligned, distilled):
    from taskptq.qat.hook import QATHook

    built = QATHook(recipe=f'w{bits}a{bits}-8_{method}-qat')
    points = built.qconfig.points
    for point, expected in (
        ('weight', bits),
        ('activation', bits),
        ('query', 8),
        ('value', 8),
        ('softmax', 8),
    ):
        assert points[point]['type'] == 'LSQQuantizer'
        assert points[point]['num_bits'] == expected
    assert built.recipe['qconfig']['edge_bits'] == 8
    kinds = [o['query']['type'] for o in built.qconfig.overrides]
    assert kinds == ['AlignedQuantizer'] * aligned
    if not distilled:
        assert built.settings.distillation is None
    else:
        assert built.settings.distillation.weight == 2.5
        assert built.settings.distillation.tau == 0.6


def test_resuming_nothing_begins_with_the_float_weights(tmp_path, repo_root):
    import importlib

    tool = importlib.import_module('taskptq.cli.train')
    config = tmp_path / 'config.py'
    config.write_text("load_from = 'float.pth'\n")
    argv = [str(config), '--work-dir', str(tmp_path), '--resume']
    cfg = tool.load_config(tool.parse_args(argv))
    assert (cfg.get('resume'), cfg.load_from) == (None, 'float.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    cfg = tool.load_config(tool.parse_args(argv))
    assert (cfg.resume, cfg.load_from) == (True, None)
    cfg = tool.load_config(tool.parse_args([*argv, 'epoch_2.pth']))
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_2.pth')
