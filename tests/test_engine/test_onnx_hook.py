from types import SimpleNamespace

import pytest
from torch import nn

pytest.importorskip('onnxruntime')

from taskptq.engine.onnx_hook import claim_onnx
from taskptq.export.runtime import OnnxFileError


def runner(path, **changes):
    fields = {
        '_load_from': path,
        '_resume': False,
        '_has_loaded': False,
        'cfg': {},
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    'given',
    [
        runner('a.pth'),
        runner(None),
        runner('a.onnx', _has_loaded=True),
    ],
)
def test_other_runs_are_left_alone(given):
    before = dict(vars(given))
    assert claim_onnx(given, nn.Linear(1, 1)) is None
    assert vars(given) == before


def test_the_config_names_the_runtime(monkeypatch):
    given = runner('a.onnx', cfg={'runtime': 'openvino'})
    asked = []

    def install(model, path, *, runtime):
        asked.append((path, runtime))
        raise OnnxFileError('stop')

    monkeypatch.setattr('taskptq.engine.onnx_hook.install_onnx', install)
    with pytest.raises(OnnxFileError, match='stop'):
        claim_onnx(given, nn.Linear(1, 1))
    assert asked == [('a.onnx', 'openvino')]


def test_a_file_cannot_be_resumed():
    with pytest.raises(ValueError, match='is an exported file'):
        claim_onnx(runner('a.onnx', _resume=True), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no ONNX file'),
        (b'\x00\x01', 'damaged or not an ONNX|no ONNX graph'),
    ],
)
def test_a_damaged_file_leaves_the_runner_as_it_was(
    tmp_path, content, message
):
    path = tmp_path / 'm.onnx'
    if content is not None:
        path.write_bytes(content)
    given = runner(str(path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        claim_onnx(given, nn.Linear(1, 1))
    assert given._load_from == str(path)
    assert not given._has_loaded


@pytest.mark.parametrize('same', [True, False])
def test_a_file_of_other_classes_is_refused(monkeypatch, same):
    data = SimpleNamespace(metainfo={'classes': ('cell', 'platelet')})
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
    meta = SimpleNamespace(
        classes=['cell', 'platelet'] if same else ['person'],
        input_size=None,
        recipe='w8a8',
        target='onnxruntime',
        parts=['main'],
    )
    monkeypatch.setattr(
        'taskptq.engine.onnx_hook.install_onnx', lambda *_, **__: meta
    )
    given = runner(
        'a.onnx',
        _test_loop=loop,
        _val_loop=None,
        logger=SimpleNamespace(info=str),
    )
    if same:
        assert claim_onnx(given, nn.Linear(1, 1)) is meta
        assert given._has_loaded
        return
    with pytest.raises(OnnxFileError, match=r'for 1 classes \(person, ...\)'):
        claim_onnx(given, nn.Linear(1, 1))
    assert not given._has_loaded
