"""Reading of configs."""

import pytest

from taskptq.engine.config_file import read_config


def test_a_file(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('steps = 3\n')
    assert read_config(path).steps == 3


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no config file'):
        read_config(tmp_path / 'none.py')


def test_what_is_no_config(tmp_path):
    path = tmp_path / 'float.pth'
    path.touch()
    with pytest.raises(ValueError, match=r'float.pth is no config: give .*py'):
        read_config(path)
    path = tmp_path / 'broken.py'
    path.write_text('a = 1\nqconfig = dict(\n')
    words = r"broken.py, or .*: '\(' was never closed \(line 2\)"
    with pytest.raises(ValueError, match=words):
        read_config(path)


def test_no_package():
    with pytest.raises(FileNotFoundError, match='give an installed one'):
        read_config('no_such_package::config.py')
