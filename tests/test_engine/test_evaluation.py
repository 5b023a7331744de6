"""What PTQHook shows and writes about an evaluation."""

import json
from pathlib import Path

import pytest

from taskptq.analysis.page import render
from taskptq.engine.evaluation import closing_line


@pytest.fixture
def hook(qconfig):
    return dict(qconfig=qconfig, calibration=dict(num_images=8))


def recorded(folder):
    return json.loads((Path(folder) / 'report.json').read_text())


def scalars(runner):
    folder = Path(runner.log_dir) / 'vis_data'
    lines = [
        line
        for path in sorted(folder.glob('*.json'))
        for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def test_metrics_are_recorded_beside_the_file(
    make_runner, float_checkpoint, hook, tmp_path
):
    runner = make_runner(float_checkpoint, hook=hook)
    metrics = runner.test()
    (entry,) = recorded(runner.work_dir)['measured']
    assert entry['file'] == 'quantized.pth'
    assert entry['metrics'] == pytest.approx(metrics)
    report = json.loads(
        (Path(runner.work_dir) / 'quantization_report.json').read_text()
    )
    assert entry['digest'] == report['digest']
    # Tested again, from another folder: the entry is beside the file.
    again = make_runner(
        Path(runner.work_dir) / 'quantized.pth',
        hook={},
        work_dir=str(tmp_path / 'other'),
    )
    (Path(runner.work_dir) / 'report.json').unlink()
    again.test()
    assert recorded(runner.work_dir)['measured'] == [entry]
    assert not (tmp_path / 'other' / 'report.json').exists()


def test_a_page_at_the_end(make_runner, float_checkpoint, hook):
    runner = make_runner(float_checkpoint, hook=dict(hook, report=True))
    metrics = runner.test()
    text = (Path(runner.work_dir) / 'report.html').read_text()
    assert '<title>TinyNet, quantized</title>' in text
    content = recorded(runner.work_dir)
    (entry,) = content['files']
    assert entry['metrics'] == pytest.approx(metrics)
    # The float weights are known, so the layers were compared.
    names = [layer['name'] for layer in entry['noise']['layers']]
    assert names == ['stem', 'body.0', 'body.3', 'head']
    assert content['measured'][0]['digest'] == entry['digest']


def test_no_page_without_its_packages(monkeypatch, make_runner, hook):
    monkeypatch.setattr(render, 'PACKAGES', ('jinja2', 'no_such_package'))
    with pytest.raises(ImportError, match='no_such_package'):
        make_runner(hook=dict(hook, report=True))


def test_the_visualizer_gets_losses_and_metrics(
    make_runner, float_checkpoint, hook
):
    hook['qconfig']['weight']['symmetric'] = False
    hook['reconstruction'] = dict(steps=2, batch_size=4)
    runner = make_runner(
        float_checkpoint,
        hook=hook,
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]
        ),
    )
    metrics = runner.test()
    found = scalars(runner)
    losses = [line for line in found if 'taskptq/unit_loss' in line]
    assert [line['step'] for line in losses] == list(range(len(losses)))
    assert losses
    (last,) = [line for line in found if 'taskptq/unit_loss' not in line]
    for name, value in metrics.items():
        assert last[f'taskptq/{name}'] == pytest.approx(value)


def test_tensorboard_gets_losses_and_metrics(
    make_runner, float_checkpoint, hook
):
    pytest.importorskip('tensorboard', reason='needs tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    hook['qconfig']['weight']['symmetric'] = False
    hook['reconstruction'] = dict(steps=2, batch_size=4)
    runner = make_runner(
        float_checkpoint,
        hook=hook,
        visualizer=dict(
            type='Visualizer',
            vis_backends=[dict(type='TensorboardVisBackend')],
        ),
    )
    metrics = runner.test()
    runner.visualizer.close()
    (file,) = Path(runner.work_dir).rglob('events.out.tfevents*')
    events = EventAccumulator(str(file))
    events.Reload()
    losses = events.Scalars('taskptq/unit_loss')
    assert [one.step for one in losses] == list(range(len(losses)))
    for name, value in metrics.items():
        (found,) = events.Scalars(f'taskptq/{name}')
        assert found.value == pytest.approx(value)


def test_the_last_line_says_file_size_metric_and_command(tmp_path):
    file = tmp_path / 'q.pth'
    file.write_bytes(b'0' * 1_330_000)
    line = closing_line(file, {'aAcc': 90.0, 'mIoU': 65.2}, command='next')
    assert line == f'{file}: 1.27 MiB, mIoU 65.2; next: next'
    assert closing_line(file) == f'{file}: 1.27 MiB'
