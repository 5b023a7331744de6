"""PTQHook inside mmengine's Runner, with float and with quantized files."""

import json
from pathlib import Path

import pytest
import torch
import warm_python

from taskptq.export import load
from taskptq.export.checkpoint import QuantizedCheckpointError

HERE = Path(__file__).resolve().parent
TINY_TASK = HERE.parent / 'tiny_task'
CALIBRATION = dict(num_images=8)


@pytest.fixture
def hook(qconfig):
    return dict(qconfig=qconfig, calibration=CALIBRATION)


@pytest.fixture
def quantized(make_runner, float_checkpoint, hook, predictions):
    """A quantized file and the predictions of the model that wrote it."""
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    return Path(runner.work_dir) / 'quantized.pth', predictions()


def changed(path, change, out):
    payload = dict(load(path))
    change(payload)
    torch.save(payload, out)
    return out


def test_float_run_quantizes_and_writes_reports(
    make_runner, float_checkpoint, hook, predictions
):
    make_runner(float_checkpoint).test()
    before = predictions()
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    after = predictions()
    assert not torch.equal(before, after)
    assert (after - before).norm() < before.norm()
    work_dir = Path(runner.work_dir)
    report = json.loads((work_dir / 'quantization_report.json').read_text())
    assert report['calibration']['num_batches'] == 2
    assert report['file_bytes'] == (work_dir / 'quantized.pth').stat().st_size
    rows = json.loads((work_dir / 'swap_report.json').read_text())['modules']
    quantized = [r['name'] for r in rows if r['status'] == 'quantized']
    assert quantized == ['stem', 'body.0', 'body.3', 'head']
    assert 'body.3' in (work_dir / 'swap_report.txt').read_text()


@pytest.mark.parametrize('with_qconfig', [True, False])
def test_quantized_file_gives_identical_predictions(
    make_runner, quantized, hook, predictions, with_qconfig
):
    path, written = quantized
    runner = make_runner(path, hook=hook if with_qconfig else {})
    runner.test()
    assert torch.equal(predictions(), written)


def test_reconstruction_under_the_hook(
    make_runner, float_checkpoint, hook, predictions
):
    hook['qconfig']['weight']['symmetric'] = False
    hook['reconstruction'] = dict(
        steps=5, batch_size=4, learn_scales=False, drop_prob=0.0
    )
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    written = predictions()
    report = json.loads(
        (Path(runner.work_dir) / 'quantization_report.json').read_text()
    )
    assert report['reconstruction']['units']
    assert not (Path(runner.work_dir) / 'reconstruction_state').exists()
    make_runner(Path(runner.work_dir) / 'quantized.pth', hook={}).test()
    assert torch.equal(predictions(), written)


def test_val_quantizes_too(make_runner, float_checkpoint, hook, predictions):
    make_runner(float_checkpoint).val()
    before = predictions()
    make_runner(float_checkpoint, hook=hook).val()
    assert not torch.equal(predictions(), before)


def test_same_seed_same_file(make_runner, float_checkpoint, hook):
    digests = []
    for _ in range(2):
        runner = make_runner(float_checkpoint, hook=hook)
        runner.test()
        payload = torch.load(
            Path(runner.work_dir) / 'quantized.pth', weights_only=True
        )
        digests.append(payload['digest'])
    assert digests[0] == digests[1]


def test_out_is_relative_to_the_work_dir(make_runner, float_checkpoint, hook):
    runner = make_runner(float_checkpoint, hook=dict(hook, out='files/q.pth'))
    runner.test()
    assert (Path(runner.work_dir) / 'files/q.pth').is_file()


def test_second_evaluation_does_not_quantize_again(
    make_runner, float_checkpoint, hook, predictions
):
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    first = predictions()
    runner.test()
    assert torch.equal(predictions(), first)


def test_without_the_hook_a_quantized_file_stops(make_runner, quantized):
    runner = make_runner(quantized[0])
    with pytest.raises(AttributeError):
        runner.test()


def wrong_schema(payload):
    payload['taskptq']['schema'] = 99


def tampered(payload):
    name = next(iter(payload['weights']))
    payload['weights'][name]['packed'][0] ^= 1


def other_recipe(payload):
    payload['recipe']['seed'] += 1


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (wrong_schema, 'schema 99'),
        (tampered, 'digest'),
        (other_recipe, 'digest'),
    ],
)
def test_bad_file_is_refused(make_runner, quantized, tmp_path, change, words):
    path = changed(quantized[0], change, tmp_path / 'bad.pth')
    with pytest.raises(QuantizedCheckpointError, match=words):
        make_runner(path, hook={}).test()


def stranger(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    mark = tmp_path / 'imported'
    (tmp_path / 'stranger_module.py').write_text(
        f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
        'from taskptq.core import MinMaxObserver as Observer\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


@pytest.mark.parametrize(
    'observer',
    [
        dict(type='stranger_module.Observer'),
        dict(type='pydoc.pipepager', cmd='touch {mark}'),
        dict(type='UnknownObserver'),
        dict(type='torch.nn.Identity'),
    ],
)
@pytest.mark.parametrize('where', ['point', 'overrides'])
def test_names_in_a_file_import_nothing(
    make_runner, quantized, tmp_path, monkeypatch, observer, where
):
    from taskptq.export.schema import compute_digest

    mark = stranger(tmp_path, monkeypatch)
    observer = {k: v.format(mark=mark) for k, v in observer.items()}

    def change(payload):
        recipe = payload['recipe']['qconfig']
        if where == 'overrides':
            recipe['overrides'] = [
                {'pattern': 'stem', 'activation': {'observer': observer}}
            ]
        else:
            recipe['activation']['observer'] = observer
        payload['digest'] = compute_digest(payload)

    path = changed(quantized[0], change, tmp_path / 'bad.pth')
    with pytest.raises(
        QuantizedCheckpointError, match='add the project that defines it'
    ) as error:
        make_runner(path, hook={}).test()
    assert observer['type'] in str(error.value)
    assert not mark.exists()


def test_a_file_names_classes_as_they_are_registered(
    make_runner, float_checkpoint, hook, predictions
):
    point = hook['qconfig']['activation']
    point['observer'] = dict(type='taskptq.core.observers.MinMaxObserver')
    hook['qconfig']['overrides'] = [
        dict(
            pattern='body.0',
            weight=dict(type='taskptq.core.quantizers.LSQQuantizer'),
        )
    ]
    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    written = predictions()
    path = Path(runner.work_dir) / 'quantized.pth'
    recipe = load(path)['recipe']['qconfig']
    assert recipe['activation']['observer']['type'] == 'MinMaxObserver'
    assert recipe['overrides'][0]['weight']['type'] == 'LSQQuantizer'
    make_runner(path, hook={}).test()
    assert torch.equal(predictions(), written)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(trust_checkpoint='False'), 'trust_checkpoint'),
        (dict(resume=1), 'resume'),
        (dict(out=3), 'out'),
        (dict(seed=-1), 'seed'),
    ],
)
def test_impossible_settings(settings, words):
    from taskptq.engine.ptq_hook import PTQHook

    with pytest.raises(ValueError, match=f'PTQHook.{words}='):
        PTQHook(**settings)


def test_where_nothing_can_be_written_is_said_before_the_work(
    make_runner, float_checkpoint, hook, tmp_path
):
    (tmp_path / 'file').touch()
    for out, words in (
        (tmp_path, 'is a folder'),
        (tmp_path / 'file' / 'q.pth', 'is not a folder'),
    ):
        runner = make_runner(float_checkpoint, hook=dict(hook, out=str(out)))
        with pytest.raises(ValueError, match=words):
            runner.test()
        assert not runner._has_loaded


def test_a_training_checkpoint_needs_qathook(make_runner, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'taskptq_qat': {}, 'state_dict': 'note'}, path)
    with pytest.raises(ValueError, match='has QATHook in its custom_hooks'):
        make_runner(path, hook={}).test()


def test_other_model_is_refused(make_runner, quantized):
    runner = make_runner(
        quantized[0], hook={}, model=dict(type='TinyNet', width=6)
    )
    with pytest.raises(QuantizedCheckpointError, match='does not fit'):
        runner.test()


def test_recipe_of_the_file_counts(
    make_runner, quantized, hook, predictions, capsys
):
    path, written = quantized
    hook['qconfig']['weight']['num_bits'] = 8
    runner = make_runner(path, hook=hook)
    runner.test()
    assert torch.equal(predictions(), written)
    log = capsys.readouterr().out
    assert 'other settings of qconfig than the config has' in log


def test_float_checkpoint_needs_qconfig(make_runner, float_checkpoint):
    with pytest.raises(ValueError, match='needs qconfig'):
        make_runner(float_checkpoint, hook={}).test()


def test_two_of_the_hook_are_refused(make_runner, float_checkpoint, hook):
    runner = make_runner(float_checkpoint, hook=hook)
    runner.register_hook(dict(type='taskptq.PTQHook', **hook))
    with pytest.raises(ValueError, match='has PTQHook more than once: keep'):
        runner.test()


def test_the_float_checkpoint_is_not_replaced(
    make_runner, float_checkpoint, hook
):
    runner = make_runner(float_checkpoint, hook=hook)
    path = Path(runner.work_dir) / 'quantized.pth'
    content = Path(float_checkpoint).read_bytes()
    path.write_bytes(content)
    runner._load_from = str(path)
    with pytest.raises(ValueError, match=r'would replace .*quantized\.pth'):
        runner.test()
    assert path.read_bytes() == content


def test_ema_hook_is_taken_out(make_runner, float_checkpoint, hook):
    from mmengine.hooks import EMAHook

    runner = make_runner(float_checkpoint, hook=hook)
    ema = [h for h in runner.hooks if isinstance(h, EMAHook)]
    assert len(ema) == 1
    runner.test()
    assert not any(isinstance(h, EMAHook) for h in runner.hooks)
    assert not hasattr(ema[0], 'ema_model')


def test_ema_hook_ahead_of_ours_is_taken_out(
    make_runner, float_checkpoint, hook
):
    from mmengine.hooks import EMAHook, Hook

    seen = []

    class Witness(Hook):
        priority = 'LOW'

        def before_run(self, runner):
            seen.append('before_run')

    runner = make_runner(float_checkpoint, hook=hook)
    runner.register_hook(dict(type='EMAHook'), priority='HIGHEST')
    runner.register_hook(Witness())
    runner.test()
    assert not any(isinstance(h, EMAHook) for h in runner.hooks)
    assert seen == ['before_run']


def train_changes():
    plain = [
        dict(type='TinyLoad'),
        dict(type='TinyLoadAnnotations'),
        dict(type='TinyPack', needs_labels=True),
    ]
    return dict(
        train_dataloader=dict(dataset=dict(dataset=dict(pipeline=plain)))
    )


def test_training_keeps_the_ema_hook_and_warns_once(make_runner, hook, capsys):
    from mmengine.hooks import EMAHook

    from taskptq.modules.base import quant_modules

    runner = make_runner(hook=hook, **train_changes())
    runner.train()
    assert any(isinstance(h, EMAHook) for h in runner.hooks)
    log = capsys.readouterr().out
    assert log.count('does nothing inside training') == 1
    assert not quant_modules(runner.model)


def test_training_from_a_quantized_file_is_refused(
    make_runner, quantized, hook
):
    runner = make_runner(quantized[0], hook=hook, **train_changes())
    with pytest.raises(QuantizedCheckpointError, match='float checkpoint'):
        runner.train()


def test_overlap_with_the_evaluation_is_refused(
    make_runner, float_checkpoint, hook, tiny_config
):
    inside = tiny_config.test_dataloader.dataset
    hook['calibration'] = dict(num_images=4, dataset=inside)
    with pytest.raises(ValueError, match='allow_overlap'):
        make_runner(float_checkpoint, hook=hook).test()
    hook['calibration']['allow_overlap'] = True
    make_runner(float_checkpoint, hook=hook).test()


def test_val_may_use_what_only_test_holds(
    make_runner, float_checkpoint, hook, tiny_config
):
    inside = tiny_config.test_dataloader.dataset
    hook['calibration'] = dict(num_images=4, dataset=inside)
    runner = make_runner(float_checkpoint, hook=hook)
    runner.val()
    with pytest.raises(ValueError, match='allow_overlap'):
        runner.test()


def test_wrapped_model(
    make_runner, float_checkpoint, hook, predictions, monkeypatch
):
    from mmengine.model import BaseModel
    from mmengine.registry import MODEL_WRAPPERS

    @MODEL_WRAPPERS.register_module()
    class Wrapper(BaseModel):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

        def test_step(self, data):
            return self.module.test_step(data)

    runner = make_runner(float_checkpoint, hook=hook)
    runner.test()
    plain = predictions()
    runner = make_runner(float_checkpoint, hook=hook)
    runner.model = Wrapper(runner.model)
    runner.test()
    assert torch.equal(predictions(), plain)
    runner = make_runner(Path(runner.work_dir) / 'quantized.pth', hook={})
    runner.model = Wrapper(runner.model)
    runner.test()
    assert torch.equal(predictions(), plain)


@pytest.mark.slow
def test_the_scope_alone_finds_the_hook(quantized, tmp_path):
    """In a fresh process that has imported nothing of taskptq."""
    script = tmp_path / 'host_test.py'
    script.write_text(f"""
import sys
sys.path[:0] = [{str(TINY_TASK)!r}, {str(HERE.parents[1])!r}]
from mmengine.config import Config
from mmengine.runner import Runner
config = {str(TINY_TASK / 'tiny_config.py')!r}
cfg = Config.fromfile(config, import_custom_modules=False)
cfg.custom_hooks.append(dict(type='taskptq.PTQHook'))
cfg.load_from = {str(quantized[0])!r}
cfg.work_dir = {str(tmp_path / 'host')!r}
assert not any(name.startswith('taskptq') for name in sys.modules)
cfg.dump({str(tmp_path / 'host.py')!r})
runner = Runner.from_cfg(Config.fromfile({str(tmp_path / 'host.py')!r}))
runner.test()
import tiny_task, torch
torch.save(tiny_task.TinyMetric.predictions, {str(tmp_path / 'out.pth')!r})
""")
    done = warm_python.run([script])
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / 'out.pth'), quantized[1])
