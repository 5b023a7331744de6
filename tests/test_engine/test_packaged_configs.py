"""Configs of installed packages."""

import pytest
from mmengine.config import Config

from taskptq.engine import packaged_configs as module
from taskptq.engine.config_file import read_config

OWN = 'taskptq::retinanet/retinanet_r18-half_fpn_bccd.py'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``mmtiny`` with two configs, as mm packages ship them."""
    folder = tmp_path / 'mmtiny' / '.mim' / 'configs'
    (folder / 'net').mkdir(parents=True)
    (folder / '_base_').mkdir()
    (tmp_path / 'mmtiny' / '__init__.py').write_text('')
    (folder / '_base_' / 'run.py').write_text('steps = 3\n')
    (folder / 'net' / 'net_r18.py').write_text(
        "_base_ = ['../_base_/run.py']\nwidth = 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_config_of_a_package(package):
    config = read_config('mmtiny::net/net_r18.py')
    assert (config.width, config.steps) == (5, 3)
    assert config.filename == str(package / 'net' / 'net_r18.py')


@pytest.mark.parametrize(
    'path', ['net/net_r81.py', 'other/net_r18.py', 'net/../net/net_r18.py']
)
def test_a_missing_config_names_the_nearest(package, path):
    with pytest.raises(FileNotFoundError) as caught:
        module.locate(f'mmtiny::{path}')
    assert 'the nearest of mmtiny are mmtiny::net/net_r18.py' in str(
        caught.value
    )


def test_an_empty_path(package):
    with pytest.raises(FileNotFoundError, match='the nearest of mmtiny'):
        module.locate('mmtiny::')


@pytest.mark.parametrize('name', ['no_such::a.py', '::a.py', 'a-b::a.py'])
def test_a_missing_package(name):
    with pytest.raises(FileNotFoundError, match='is not installed; give an'):
        module.locate(name)


def test_our_own_configs_are_found_in_the_checkout():
    assert module.locate(OWN).is_file()


def without_scope(value):
    """Take out what mmengine adds to each dict it inherits by ``mmdet::``."""
    if isinstance(value, dict):
        return {
            key: without_scope(item)
            for key, item in value.items()
            if key != '_scope_'
        }
    if isinstance(value, list | tuple):
        return type(value)(map(without_scope, value))
    return value


@pytest.mark.parametrize(
    'name',
    [
        'mmtiny::net/net_r18.py',
        OWN,
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_a_written_config_inherits_what_any_host_resolves(
    package, name, tmp_path
):
    if name.startswith(('mmdet', 'mmseg')):
        pytest.importorskip(name[:5])
    path = tmp_path / 'q.py'
    path.write_text(f'_base_ = [{module.base_expression(name)}]\nmark = 1\n')
    # As mmengine reads it in a host's own tools.
    found = Config.fromfile(path)
    assert found.pop('mark') == 1
    expected = without_scope(read_config(name).to_dict())
    assert without_scope(found.to_dict()) == expected
