"""What a Runner with our hooks reads, and what it refuses to read."""

import http.server
import threading
from pathlib import Path

import pytest
import torch

from taskptq.engine import checkpoint_guard
from taskptq.engine.checkpoint_file import local_file
from taskptq.engine.checkpoint_guard import (
    guarded,
    guarded_path,
    guarded_runner,
    training_state_problem,
    zoo_url,
)

QCONFIG = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
QUANTIZE = dict(qconfig=QCONFIG, calibration=dict(num_images=4))
LABELED = [
    dict(type='TinyLoad'),
    dict(type='TinyLoadAnnotations'),
    dict(type='TinyPack', needs_labels=True),
]
QAT = dict(
    type='taskptq.QATHook',
    calibration=dict(num_images=4),
    qconfig=dict(weight=dict(type='LSQQuantizer', num_bits=4)),
)


def training(**changes):
    """Changes of the tiny config for one epoch that writes a checkpoint."""
    dataset = dict(dataset=dict(pipeline=LABELED))
    return dict(
        dict(
            train_dataloader=dict(dataset=dataset),
            train_cfg=dict(max_epochs=1, val_interval=9),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=1, _delete_=True
                )
            ),
        ),
        **changes,
    )


class Touch:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / 'ran'


def malicious(path, out, mark, *, place, zipped=True):
    """Write a checkpoint that runs code wherever it is unpickled."""
    content = torch.load(path, weights_only=True)
    if place == 'weights':
        content['state_dict']['extra'] = Touch(mark)
    else:
        content[place] = Touch(mark)
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out


@pytest.mark.parametrize(
    ('place', 'zipped'), [('weights', True), ('meta', False)]
)
def test_test_runs_nothing_of_the_file(
    make_runner, float_checkpoint, tmp_path, mark, place, zipped
):
    path = malicious(
        float_checkpoint,
        tmp_path / 'bad.pth',
        mark,
        place=place,
        zipped=zipped,
    )
    runner = make_runner(path, hook=QUANTIZE)
    with pytest.raises(ValueError, match='trust_checkpoint=True') as error:
        runner.test()
    assert '\n' not in str(error.value)
    assert not mark.exists()


def test_trust_lets_the_file_run(
    make_runner, float_checkpoint, tmp_path, mark
):
    path = malicious(
        float_checkpoint, tmp_path / 'bad.pth', mark, place='meta'
    )
    make_runner(path, hook=dict(QUANTIZE, trust_checkpoint=True)).test()
    assert mark.exists()


@pytest.mark.parametrize(
    'hooks',
    [[QAT], [dict(type='taskptq.PTQHook')]],
    ids=['QATHook', 'PTQHook'],
)
@pytest.mark.parametrize('how', ['load_from', 'resume', 'latest'])
def test_training_runs_nothing_of_the_file(
    make_runner, float_checkpoint, tmp_path, mark, hooks, how
):
    path = malicious(
        float_checkpoint, tmp_path / 'bad.pth', mark, place='optimizer'
    )
    changes = training(custom_hooks=hooks, resume=how != 'load_from')
    runner = make_runner(None if how == 'latest' else path, **changes)
    if how == 'latest':
        Path(runner.work_dir, 'last_checkpoint').write_text(str(path))
    with pytest.raises(ValueError, match='trust_checkpoint=True'):
        runner.train()
    assert not mark.exists()


def test_resume_outside_of_training_is_refused(make_runner, float_checkpoint):
    for hooks in ([dict(type='taskptq.PTQHook', **QUANTIZE)], [QAT]):
        runner = make_runner(float_checkpoint, custom_hooks=hooks, resume=True)
        with pytest.raises(ValueError, match='resume=True continues'):
            runner.test()


@pytest.fixture
def interrupted(make_runner, mark):
    """A training's checkpoint, whose config's text runs code."""
    runner = make_runner(custom_hooks=[], **training())
    runner.train()
    path = Path(runner.work_dir) / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = (
        f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
    )
    torch.save(content, path)
    return path


def test_resume_does_not_run_the_config_of_the_file(
    make_runner, interrupted, mark
):
    def changes():
        return {
            **training(resume=True),
            'train_cfg': dict(max_epochs=2, val_interval=9),
        }

    runner = make_runner(
        interrupted, custom_hooks=[dict(type='taskptq.PTQHook')], **changes()
    )
    runner.train()
    assert (runner.epoch, mark.exists()) == (2, False)
    # What a host does without the hook shows that the file would do harm.
    make_runner(interrupted, custom_hooks=[], **changes()).train()
    assert mark.exists()


def test_a_trusted_resume_keeps_the_config(make_runner, interrupted, mark):
    hook = dict(type='taskptq.PTQHook', trust_checkpoint=True)
    make_runner(
        interrupted, custom_hooks=[hook], **training(resume=True)
    ).train()
    assert mark.exists()


@pytest.mark.parametrize(
    'hooks', [[dict(type='taskptq.PTQHook')], []], ids=['PTQHook', 'none']
)
def test_a_training_goes_on_with_its_own_weights_only(
    make_runner, interrupted, hooks
):
    content = torch.load(interrupted, weights_only=False)
    content['state_dict'].clear()
    content['meta'].pop('config')
    torch.save(content, interrupted)
    runner = make_runner(
        interrupted, custom_hooks=hooks, **training(resume=True)
    )
    if not hooks:
        runner = guarded_runner(runner.cfg, training=True)
    with pytest.raises(ValueError, match='holds no weights'):
        runner.train()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c.pop('meta'), 'no meta'),
        (lambda c: c['meta'].update(epoch='1'), "meta.epoch is '1'"),
        (lambda c: c['meta'].update(iter=-1), 'meta.iter is -1'),
        (lambda c: c['meta'].update(seed=[1]), 'meta.seed'),
        (lambda c: c['message_hub'].pop('log_scalars'), 'log_scalars'),
        (lambda c: c.update(optimizer=3), 'optimizer'),
        (lambda c: c.update(param_schedulers=3), 'param_schedulers'),
    ],
)
def test_what_no_training_can_go_on_from(change, words):
    content = dict(
        meta=dict(epoch=1, iter=6, seed=0),
        optimizer={},
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
    )
    assert training_state_problem(content) is None
    change(content)
    assert words in training_state_problem(content)


def test_a_float_checkpoint_is_not_resumed(make_runner, float_checkpoint):
    runner = make_runner(
        float_checkpoint,
        custom_hooks=[dict(type='taskptq.PTQHook')],
        **training(resume=True),
    )
    with pytest.raises(ValueError, match='not the checkpoint of an interrup'):
        runner.train()


def test_pretrained_files_of_a_training_run_nothing(
    make_runner, float_checkpoint, tmp_path, mark
):
    path = malicious(
        float_checkpoint, tmp_path / 'bad.pth', mark, place='meta'
    )
    for source in (path, float_checkpoint):
        init_cfg = dict(type='Pretrained', checkpoint=str(source))
        runner = make_runner(
            model=dict(init_cfg=init_cfg),
            custom_hooks=[dict(type='taskptq.PTQHook')],
            **training(),
        )
        before = runner.model.stem.weight.clone()
        if source == path:
            with pytest.raises(ValueError, match='trust_checkpoint'):
                runner.train()
        else:
            runner._init_model_weights()
        assert not mark.exists()
    assert not torch.equal(runner.model.stem.weight, before)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a folder; returns it, its URL, and what was asked for."""
    folder = tmp_path / 'served'
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    yield folder, f'http://127.0.0.1:{server.server_port}', asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_with_the_same_name_are_two_files(served):
    folder, url, asked = served
    for name in 'ab':
        (folder / name).mkdir()
        (folder / name / 'model.pth').write_text(name)
    for _ in range(2):
        for name in 'ab':
            path = local_file(f'{url}/{name}/model.pth')
            assert (path.name, path.read_text()) == ('model.pth', name)
    assert asked == ['/a/model.pth', '/b/model.pth']


def test_a_url_that_gives_something_else_is_refused(served):
    folder, url, _ = served
    (folder / 'model-0badc0de.pth').write_text('other')
    (folder / 'model-20230101.pth').write_text('dated')
    for name, words in (
        ('model-0badc0de.pth', 'sha256'),
        ('no.pth', 'could not be fetched'),
    ):
        with pytest.raises(ValueError, match=words) as error:
            local_file(f'{url}/{name}')
        assert '\n' not in str(error.value)
    assert local_file(f'{url}/model-20230101.pth').read_text() == 'dated'


def test_the_runner_reads_a_url_once(
    make_runner, float_checkpoint, served, tmp_path
):
    folder, url, asked = served
    (folder / 'float.pth').write_bytes(float_checkpoint.read_bytes())
    runner = make_runner(f'{url}/float.pth', hook=QUANTIZE)
    runner.test()
    assert asked == ['/float.pth']
    assert guarded_path(runner._load_from).is_relative_to(tmp_path / 'hub')


def test_storages_that_cannot_be_checked():
    for source in ('s3://bucket/a.pth', 'pavi://a', 'own://a.pth'):
        with pytest.raises(ValueError, match='copy it to a local file'):
            guarded(source)
        assert guarded(source, trust_checkpoint=True) == source


def test_names_of_model_zoos_are_addresses(monkeypatch):
    zoo = checkpoint_guard.mmengine_checkpoint
    monkeypatch.setattr(
        zoo,
        'get_external_models',
        lambda: {'new': 'https://zoo/a.pth', 'own': 'b.pth'},
    )
    monkeypatch.setattr(
        zoo, 'get_deprecated_model_names', lambda: {'old': 'new'}
    )
    monkeypatch.setattr(zoo, '_get_mmengine_home', lambda: '/home/mmengine')
    assert zoo_url('open-mmlab://old') == 'https://zoo/a.pth'
    assert zoo_url('openmmlab://own') == '/home/mmengine/b.pth'
    assert zoo_url('torchvision://resnet50').startswith('https://')
    with pytest.raises(ValueError, match='no resnet51'):
        zoo_url('torchvision://resnet51')


@pytest.mark.parametrize('loop', ['test', 'val', 'train'])
def test_another_models_weights_stop_the_runner(
    make_runner, float_checkpoint, loop
):
    changes = dict(hook=QUANTIZE)
    if loop == 'train':
        changes = training(custom_hooks=[QAT])
    runner = make_runner(
        float_checkpoint, model=dict(type='TinyNet', width=6), **changes
    )
    with pytest.raises(ValueError, match='does not fit TinyNet'):
        getattr(runner, loop)()


def test_random_weights_are_warned_of(make_runner, capsys):
    make_runner(hook=QUANTIZE).test()
    assert 'no checkpoint was loaded' in capsys.readouterr().out
