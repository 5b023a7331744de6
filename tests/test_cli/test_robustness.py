import json

import pytest
from noisy_task import NoisyTask

from taskptq.cli import bench, robustness


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    return NoisyTask(tmp_path_factory.mktemp('noisy'))


def words(task, out, *more):
    files = [task.config, task.float, task.quantized]
    return ['robustness', *map(str, files), '--out', str(out), *more]


def results(folder):
    content = json.loads((folder / 'robustness.json').read_text())
    return content, {row['noise']: row['results'] for row in content['rows']}


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(
    task, tmp_path, monkeypatch, repo_root
):
    helpers = repo_root / 'tests' / 'helpers'
    monkeypatch.setenv('PYTHONPATH', f'{helpers}:{repo_root}')
    one, two = tmp_path / 'one', tmp_path / 'two'
    bench.main(words(task, one, '--processes', '1', '--max-images', '3'))
    bench.main(words(task, two, '--processes', '2', '--max-images', '3'))
    content, first = results(one)
    assert first == results(two)[1]
    (run,) = content['runs']
    assert run['processes'] == 1
    assert run['command'].startswith('taskptq bench robustness ')
    assert content['rows'][0]['commit'] == run['commit']
    assert 'combined' in first
    assert (one / 'robustness.png').is_file()
    assert '## System noise' in (one / 'robustness.md').read_text()


def test_rows_by_name(task, tmp_path, capsys):
    more = ('--only', 'crop=1', 'ceil_mode', '--processes', '1')
    bench.main(words(task, tmp_path, *more))
    assert list(results(tmp_path)[1]) == ['clean', 'crop=1', 'ceil_mode']
    assert '| crop=1' in capsys.readouterr().out


def test_a_noise_that_changes_nothing_is_refused_by_name(task, tmp_path):
    more = ('--only', 'box_offset', '--processes', '1')
    with pytest.raises(
        SystemExit, match='box_offset=1 is not applicable: the model predict'
    ):
        bench.main(words(task, tmp_path, *more))


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--only', 'rain'), "noise 'rain' is unknown"),
        (('--only', 'fog=9'), "'fog' has no option '9'"),
    ],
)
def test_unknown_names(task, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        bench.main(words(task, tmp_path, *more))


def test_options(capsys):
    args = robustness.parse_args(
        ['c.py', 'f.pth', 'q.pth', '--noise', 'corruptions', '--quick']
    )
    assert args.files == ['q.pth']
    assert args.severities == [1, 2, 3, 4, 5]
    assert len(robustness.read_rows(args)) == 76
    with pytest.raises(SystemExit):
        robustness.parse_args(['c.py', 'f.pth', '--severities', '6'])
    assert 'at most 5' in capsys.readouterr().err
