"""tools/test.py and tools/quantize.py on the tiny task."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from taskptq.export import load

ROOT = Path(__file__).resolve().parents[2]


def tool(name):
    return importlib.import_module(f'taskptq.cli.{name}')


@pytest.fixture
def run_test(tmp_path):
    count = iter(range(100))

    def run(config, checkpoint, *options):
        number = next(count)
        return tool('test').main(
            [
                str(config),
                str(checkpoint),
                '--work-dir',
                str(tmp_path / f'test_{number}'),
                *options,
                '--cfg-options',
                f'experiment_name={tmp_path.name}_tool_{number}',
            ]
        )

    return run


@pytest.fixture
def quantized(tiny_path, float_checkpoint, tmp_path):
    """q.pth and q.py, written by the tool."""
    out = tmp_path / 'out' / 'q.pth'
    tool('quantize').main(
        [
            str(tiny_path),
            str(float_checkpoint),
            '--recipe',
            'w4a4',
            '--num-images',
            '8',
            '--out',
            str(out),
            '--device',
            'cpu',
        ]
    )
    return out


def test_quantize_then_test(
    quantized, tiny_path, run_test, predictions, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    metrics = run_test(
        quantized.with_suffix('.py'), quantized, '--out', 'metrics.json'
    )
    first = predictions()
    result = json.loads((tmp_path / 'metrics.json').read_text())
    assert result['metrics'] == metrics
    assert result['quantization'] is None
    run_test(tiny_path, quantized)
    assert torch.equal(predictions(), first)


def test_written_config_quantizes_alike(
    quantized, float_checkpoint, run_test, predictions, tmp_path
):
    config = quantized.with_suffix('.py')
    run_test(config, quantized)
    first = predictions()
    out = tmp_path / 'metrics.json'
    run_test(config, float_checkpoint, '--out', str(out))
    assert torch.equal(predictions(), first)
    report = json.loads(out.read_text())['quantization']
    assert report['recipe']['calibration']['num_images'] == 8


def test_method_reaches_the_written_config(
    tiny_path, float_checkpoint, tmp_path
):
    out = tmp_path / 'out' / 'q.pth'
    with pytest.raises(SystemExit, match='attention'):
        # The tiny model has no attention: that the rewrite says so shows
        # that it was run.
        tool('quantize').main(
            [
                str(tiny_path),
                str(float_checkpoint),
                '--recipe',
                'w4a4_mse-centering',
                '--num-images',
                '8',
                '--out',
                str(out),
                '--device',
                'cpu',
            ]
        )


def test_overrides_reach_the_written_config(tiny_path, tmp_path, run_test):
    import tiny_task

    path = tmp_path / 'wide.pth'
    torch.save(tiny_task.TinyNet(width=10).state_dict(), path)
    out = tmp_path / 'wide' / 'q.pth'
    tool('quantize').main(
        [
            str(tiny_path),
            str(path),
            '--recipe',
            'w4a4',
            '--num-images',
            '4',
            '--out',
            str(out),
            '--device',
            'cpu',
            '--cfg-options',
            'model.width=10',
        ]
    )
    assert run_test(out.with_suffix('.py'), out)


@pytest.mark.parametrize('name', ['test', 'quantize'])
def test_bad_files_are_refused_in_one_sentence(
    name, tiny_path, tmp_path, quantized, float_checkpoint
):
    strange = tmp_path / 'strange.pth'
    torch.save({'state_dict': {}, 'path': tmp_path}, strange)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(float_checkpoint.read_bytes()[:2000])
    changed = tmp_path / 'changed.pth'
    payload = dict(load(quantized))
    payload['float']['head.bias'][0] += 1
    torch.save(payload, changed)
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'stem.weight': torch.zeros(8, 3, 3, 3)}}, other)
    options = (
        []
        if name == 'test'
        else ['--recipe', 'w4a4', '--out', str(tmp_path / 'never.pth')]
    )
    for path, words in (
        (strange, 'trust-checkpoint'),
        (cut, 'truncated'),
        (changed, 'digest'),
        (tmp_path / 'no.pth', 'no.pth'),
        (other, 'does not fit TinyNet'),
    ):
        with pytest.raises(SystemExit) as stop:
            tool(name).main([str(tiny_path), str(path), *options])
        assert words in str(stop.value)
        assert '\n' not in str(stop.value)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ("reconstruction=dict(weight_lr='1e-3')", 'write 1.0e-3'),
        ('reconstruction=dict(stepz=3)', "unknown key 'stepz'"),
        ('qconfg=dict()', "PTQHook has unknown key 'qconfg' (did you"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_sentence(
    settings, words, tiny_path, tmp_path, float_checkpoint
):
    config = tmp_path / 'bad.py'
    config.write_text(
        f'_base_ = [{tiny_path.as_posix()!r}]\n'
        "custom_hooks = [dict(type='taskptq.PTQHook', "
        f"recipe='w4a4', {settings})]\n"
    )
    with pytest.raises(SystemExit) as stop:
        tool('test').main([str(config), str(float_checkpoint)])
    assert words in str(stop.value)
    assert '\n' not in str(stop.value)


class Touch:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_train_reads_nothing_that_runs_code(tiny_path, tmp_path):
    """Without any of our hooks in the config, too."""
    mark = tmp_path / 'ran'
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': {}, 'meta': Touch(mark)}, path)
    options = [str(tiny_path), '--work-dir', str(tmp_path / 'work')]
    for given in (
        ['--resume', str(path)],
        ['--cfg-options', f'load_from={path}'],
    ):
        with pytest.raises(SystemExit, match='trust') as stop:
            tool('train').main([*options, *given])
        assert '\n' not in str(stop.value)
        assert not mark.exists()
    with pytest.raises(SystemExit, match='no checkpoint file'):
        tool('train').main([*options, '--resume', str(tmp_path / 'no.pth')])


def test_errors_inside_of_a_run_are_one_sentence(
    tiny_path, float_checkpoint, run_test, tmp_path
):
    config = tmp_path / 'overlap.py'
    config.write_text(
        f'_base_ = [{tiny_path.as_posix()!r}]\n'
        "custom_hooks = [dict(type='taskptq.PTQHook', qconfig=dict(), "
        'calibration=dict(num_images=4, '
        'dataset=_base_.test_dataloader.dataset))]\n'
    )
    with pytest.raises(SystemExit, match='allow_overlap') as stop:
        run_test(config, float_checkpoint)
    assert '\n' not in str(stop.value)


@pytest.mark.parametrize('trusting', ['flag', 'config', 'nobody'])
def test_trust(trusting, tiny_path, float_checkpoint, run_test, tmp_path):
    mark = tmp_path / 'ran'
    path = tmp_path / 'odd.pth'
    content = torch.load(float_checkpoint, weights_only=True)
    torch.save({**content, 'meta': Touch(mark)}, path)
    config = tmp_path / 'config.py'
    said = trusting == 'config'
    config.write_text(
        f'_base_ = [{tiny_path.as_posix()!r}]\n'
        "custom_hooks = [dict(type='taskptq.PTQHook', qconfig=dict(), "
        f'calibration=dict(num_images=4), trust_checkpoint={said})]\n'
    )
    options = ['--trust-checkpoint'] if trusting == 'flag' else []
    if trusting == 'nobody':
        with pytest.raises(SystemExit, match='trust-checkpoint'):
            run_test(config, path)
    else:
        assert run_test(config, path, *options)
    assert mark.exists() == (trusting != 'nobody')


@pytest.mark.parametrize('name', ['test', 'quantize'])
def test_results_that_cannot_be_written(
    name, tiny_path, float_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.pth').mkdir()
    options = [] if name == 'test' else ['--recipe', 'w4a4']
    for more, words in (
        (['--out', str(tmp_path / 'folder.pth')], 'is a folder'),
        (['--out', str(tmp_path / 'file' / 'q.pth')], 'not a folder'),
        (
            ['--out', 'q.pth', '--work-dir', str(tmp_path / 'file')],
            'not a folder',
        ),
    ):
        with pytest.raises(SystemExit, match=words):
            tool(name).main(
                [str(tiny_path), str(float_checkpoint), *options, *more]
            )


def test_a_test_needs_a_test_set(
    tiny_path, float_checkpoint, run_test, tmp_path
):
    config = tmp_path / 'untested.py'
    config.write_text(
        f'_base_ = [{tiny_path.as_posix()!r}]\n'
        'test_dataloader = test_cfg = None\n'
    )
    words = r'untested\.py has no test_dataloader, test_cfg: a test needs'
    with pytest.raises(SystemExit, match=words):
        run_test(config, float_checkpoint)


def test_a_runtime_is_for_exported_files(
    tiny_path, float_checkpoint, run_test
):
    with pytest.raises(SystemExit, match='--runtime is for exported files'):
        run_test(tiny_path, float_checkpoint, '--runtime', 'openvino')


def test_base_path(tmp_path):
    base_path = tool('quantize').base_path
    config = tmp_path / 'configs' / 'a.py'
    near = base_path(config, folder=tmp_path / 'work')
    assert near == '../configs/a.py'
    assert base_path(config, folder=Path('/elsewhere')) == config.as_posix()
