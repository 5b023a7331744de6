"""Stages of one training, inside mmengine's Runner."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.core.settings import SettingError
from taskptq.core.switches import quantizers
from taskptq.engine.checkpoint_file import TRAINING_KEY, read_checkpoint
from taskptq.export import load
from taskptq.qat.stages import Stages, is_in

TINY_TASK = Path(__file__).resolve().parents[1] / 'tiny_task'


def grids(bits):
    return dict(
        weight=dict(type='LSQQuantizer', num_bits=bits, per_channel=True),
        activation=dict(type='LSQQuantizer', num_bits=8),
        edge_bits=None,
    )


def test_epochs_choose_the_stage():
    stages = Stages.from_list([dict(epochs=2), dict(epochs=1), {}])
    assert [stages.at(epoch) for epoch in range(5)] == [0, 0, 1, 2, 2]
    stages.check_length(4)
    with pytest.raises(ValueError, match=r'take 3 epochs, but .* is 3'):
        stages.check_length(3)
    with pytest.raises(ValueError, match='EpochBasedTrainLoop'):
        stages.check_length(None)
    Stages.from_list([{}]).check_length(None)


def test_parts_are_names_or_patterns():
    assert is_in('backbone', 'backbone')
    assert is_in('backbone.conv.weight_quantizer', 'backbone')
    assert not is_in('backbone2.conv', 'backbone')
    assert is_in('layers.3.conv', '*.conv')


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ([], 'stages='),
        ('w8a8', 'stages='),
        ([7], r'stages\[0\]=7'),
        ([dict(epoch=1)], "unknown key 'epoch'"),
        ([dict(epochs=0)], r'stages\[0\].epochs=0'),
        ([{}, {}], r'stages\[0\] lacks epochs'),
        ([dict(part=3, epochs=1), {}], r'stages\[0\].part=3'),
        ([dict(epochs=1), dict(recipe='w8a8_lsq-qat')], 'is the last one'),
        (
            [dict(epochs=1, recipe='w8a8_lsq-qat', qconfig={}), {}],
            'both a recipe and a qconfig',
        ),
        ([dict(epochs=1, recipe='w8a8_lsqq-qat'), {}], 'lsqq-qat'),
    ],
)
def test_impossible_stages(given, words):
    with pytest.raises(SettingError, match=words):
        Stages.from_list(given)


@pytest.fixture
def make(registry_guard, monkeypatch, tmp_path):
    """Build runners of a tiny DETR in four epochs."""
    pytest.importorskip('mmdet')
    monkeypatch.syspath_prepend(str(TINY_TASK))
    sys.modules.pop('tiny_detr', None)
    import tiny_detr
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope, init_default_scope
    from mmengine.runner import Runner

    scopes = dict(DefaultScope._instance_dict)
    count = iter(range(100))
    init_default_scope('mmdet')
    torch.manual_seed(1)
    built = MODELS.build(tiny_detr.detr())
    torch.save(
        {'state_dict': built.state_dict(), 'meta': {}}, tmp_path / 'float.pth'
    )

    def build(*, work, load_from='float.pth', hooks=(), **changes):
        config = Config(copy.deepcopy(tiny_detr.config(tiny_detr.detr())))
        config.experiment_name = f'{tmp_path.name}_{next(count)}'
        config.work_dir = str(tmp_path / work)
        config.load_from = str(tmp_path / load_from)
        config.train_cfg.max_epochs = 4
        config.param_scheduler = [
            dict(type='MultiStepLR', milestones=[1, 3], gamma=0.1)
        ]
        config.custom_hooks = [h for h in hooks if isinstance(h, dict)]
        config.merge_from_dict(changes)
        runner = Runner.from_cfg(config)
        for hook in hooks:
            if not isinstance(hook, dict):
                runner.register_hook(hook)
        return runner

    yield build
    sys.modules.pop('tiny_detr', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


STAGES = [
    dict(part=['backbone', 'neck'], qconfig=grids(8), epochs=1),
    dict(part='backbone', epochs=1),
    {},
]


def hook(**changes):
    return dict(
        type='taskptq.QATHook',
        qconfig=grids(4),
        stages=STAGES,
        calibration=dict(num_images=4),
        **changes,
    )


def witness():
    from mmengine.hooks import Hook

    class Seen(Hook):
        priority = 'LOW'

        def __init__(self):
            self.epochs = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if batch_idx:
                return
            found = {
                name: q.spec.num_bits
                for name, q in quantizers(runner.model)
                if q.calibrated and name.endswith('weight_quantizer')
            }
            group = runner.optim_wrapper.param_groups[0]
            moments = [
                int(state['step'])
                for state in runner.optim_wrapper.optimizer.state.values()
                if 'step' in state
            ]
            self.epochs.append(
                dict(
                    parts={name.partition('.')[0] for name in found},
                    bits=set(found.values()),
                    lr=group['lr'] / group['initial_lr'],
                    steps=max(moments, default=0),
                )
            )

    return Seen()


def weights_of(path):
    return read_checkpoint(path)[TRAINING_KEY]['weights']


def test_stages_follow_each_other(make, tmp_path):
    seen = witness()
    runner = make(work='whole', hooks=[hook(), seen])
    runner.train()
    one, two, three, four = seen.epochs
    assert one['parts'] == {'backbone', 'neck'}
    assert one['bits'] == {8}
    assert two['parts'] == {'backbone'}
    assert two['bits'] == {4}
    assert three['parts'] == four['parts'] > {'backbone', 'neck'}
    assert three['bits'] == {4}
    # Schedule and optimizer go on as if nothing had happened.
    factors = [epoch['lr'] for epoch in seen.epochs]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])
    steps = [epoch['steps'] for epoch in seen.epochs]
    assert steps[0] == 0
    assert steps[1] > 0
    assert [s / steps[1] for s in steps] == [0, 1, 2, 3]

    folder = tmp_path / 'whole'
    entries = [
        read_checkpoint(folder / f'epoch_{n}.pth')[TRAINING_KEY]
        for n in (1, 2, 3)
    ]
    trained = [entry['recipe']['training'] for entry in entries]
    assert [one['at'] for one in trained] == [0, 1, 2]
    bits = [e['recipe']['qconfig']['weight']['num_bits'] for e in entries]
    assert bits == [8, 4, 4]
    packed = load(folder / 'quantized.pth')
    assert {one['num_bits'] for one in packed['weights'].values()} == {4}
    rows = json.loads((folder / 'swap_report.json').read_text())['modules']
    assert all(row['weight_bits'] in (4, None) for row in rows)


def test_a_stage_is_resumed_and_tested(make, tmp_path):
    runner = make(work='whole', hooks=[hook()])
    runner.train()
    expected = weights_of(tmp_path / 'whole' / 'epoch_4.pth')
    # In the middle of the training, at the end of a stage.
    again = make(
        work='resumed',
        load_from='whole/epoch_2.pth',
        hooks=[hook()],
        resume=True,
    )
    again.train()
    found = weights_of(tmp_path / 'resumed' / 'epoch_4.pth')
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name

    tested = make(
        work='test',
        load_from='whole/epoch_1.pth',
        hooks=[dict(type='taskptq.QATHook')],
    )
    tested.test()
    packed = load(tmp_path / 'test' / 'quantized.pth')
    names = set(packed['weights'])
    assert {name.partition('.')[0] for name in names} == {'backbone', 'neck'}
    assert {one['num_bits'] for one in packed['weights'].values()} == {8}
    other = hook()
    other['stages'] = [dict(epochs=1), {}]
    again = make(
        work='other',
        load_from='whole/epoch_2.pth',
        hooks=[other],
        resume=True,
    )
    with pytest.raises(ValueError, match='differs from the config in stages'):
        again.train()


def test_parts_must_exist(make):
    given = hook()
    given['stages'] = [dict(part='head', epochs=1), {}]
    runner = make(work='bad', hooks=[given])
    with pytest.raises(ValueError, match=r'stages\[0\] .* model.head'):
        runner.train()


def test_one_of_stage_and_stages():
    from taskptq.qat.hook import QATHook

    with pytest.raises(SettingError, match='stage=1 and stages'):
        QATHook(grids(4), stage=1, stages=[{}])
