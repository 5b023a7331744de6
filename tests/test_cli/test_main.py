"""The console command ``taskptq``."""

import subprocess
import sys
from pathlib import Path

import pytest
import warm_python

from taskptq.cli import main as module
from taskptq.cli.main import COMMANDS, main
from taskptq.version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch):
    """Record what a command of the name ``info`` is called with."""
    calls = []

    class Command:
        def main(argv):
            calls.append((sys.argv[0], argv))

    monkeypatch.setattr(
        module.importlib, 'import_module', lambda name: Command
    )
    return calls


def test_a_command_gets_the_rest_and_its_name(command):
    before = sys.argv[0]
    main(['info', '--json', 'q.pth'])
    assert command == [('taskptq info', ['--json', 'q.pth'])]
    assert sys.argv[0] == before


def test_help_after_a_command_is_the_commands(command):
    main(['bench', '--help'])
    assert command == [('taskptq bench', ['--help'])]


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_a_module(name):
    source = ROOT / 'taskptq' / 'cli' / f'{name}.py'
    assert '\ndef main(argv: list[str] | None = None)' in source.read_text()


@pytest.mark.parametrize(
    ('word', 'near'),
    [('quantise', 'quantize'), ('lst', 'list'), ('tset', 'test')],
)
def test_an_unknown_command_names_the_nearest(word, near):
    with pytest.raises(SystemExit) as caught:
        main([word])
    assert str(caught.value) == (
        f'taskptq has no command {word!r}: did you mean {near}?'
    )


def test_an_unknown_command_without_a_near_one_names_all():
    with pytest.raises(SystemExit, match=r'choose one of quantize, test, '):
        main(['xyzzy'])


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--version'])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f'taskptq {__version__}\n'


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    text = capsys.readouterr().out
    assert text.startswith('usage: taskptq [-h] [--version] COMMAND ...')
    assert all(f'  {name} ' in text for name in COMMANDS)


def test_without_a_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert 'usage: taskptq' in capsys.readouterr().err


def test_ctrl_c_ends_in_one_sentence(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr('taskptq.cli.info.main', interrupted)
    with pytest.raises(SystemExit) as caught:
        main(['info', 'q.pth'])
    assert caught.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('taskptq info: interrupted; run it again')


@pytest.mark.parametrize('name', ['mmengine', 'mmengine.config'])
def test_without_mmengine_one_sentence(name, monkeypatch):
    def lacks(_):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    monkeypatch.setattr(module.importlib, 'import_module', lacks)
    with pytest.raises(SystemExit, match=r'^taskptq test: .* pip install'):
        main(['test'])


def test_what_else_is_missing_keeps_its_traceback(monkeypatch):
    def lacks(_):
        raise ModuleNotFoundError("No module named 'rich'", name='rich')

    monkeypatch.setattr(module.importlib, 'import_module', lacks)
    with pytest.raises(ModuleNotFoundError, match='rich'):
        main(['test'])


def run(*arguments, warm=False):
    """Run ``python -m taskptq`` and list the packages that it imported.

    ``warm``: in a process that has imported torch, but nothing of a host.
    """
    program = (
        'import runpy, sys\n'
        f'sys.argv[1:] = {list(arguments)!r}\n'
        'try:\n'
        "    runpy.run_module('taskptq', run_name='__main__')\n"
        'except SystemExit as end:\n'
        '    assert not end.code, end\n'
        "print('loaded', *sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    if warm:
        result = warm_python.run(['-c', program], cwd=ROOT)
    else:
        result = subprocess.run(
            [sys.executable, '-c', program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    output, _, loaded = result.stdout.rpartition('loaded ')
    return output, set(loaded.split())


def test_help_imports_nothing():
    output, loaded = run('--help')
    assert 'quantize a float checkpoint' in output
    assert loaded.isdisjoint({'torch', 'mmengine', 'numpy'})


@pytest.mark.parametrize(
    ('arguments', 'forbidden'),
    [
        (('list', 'recipes'), {'mmengine', 'mmcv', 'mmdet', 'mmseg'}),
        (('list', 'losses'), {'mmcv', 'mmdet', 'mmseg'}),
        (('info', '--help'), {'mmengine', 'mmcv', 'mmdet', 'mmseg'}),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(arguments, forbidden):
    _, loaded = run(*arguments, warm=True)
    assert 'taskptq' in loaded
    assert loaded.isdisjoint(forbidden)
