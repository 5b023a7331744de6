"""Progress: a line for each unit, a display on a terminal."""

import logging

from taskptq.reconstruction import (
    reconstruct,
)
from taskptq.testing import (
    tiny_batches,
)


def test_quiet_without_a_terminal(quantized, quick, forward, capfd, caplog):
    model, batches = quantized('conv'), tiny_batches('conv')
    with caplog.at_level(logging.INFO, logger='taskptq'):
        reconstruct(model, batches, quick(steps=2), forward=forward)
    assert capfd.readouterr() == ('', '')
    lines = [r.message for r in caplog.records if r.message[:5] == 'unit ']
    assert [line.split(':')[0] for line in lines] == [
        'unit 1/4 stem',
        'unit 2/4 layer1',
        'unit 3/4 layer2',
        'unit 4/4 head',
    ]
    assert 'whole-model passes' in caplog.text


def test_live_on_a_terminal(quantized, quick, forward, monkeypatch, capsys):
    monkeypatch.delenv('CI', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    model, batches = quantized('conv'), tiny_batches('conv')
    reconstruct(model, batches, quick(steps=25), forward=forward)
    shown = ''.join(capsys.readouterr())
    assert 'unit 4/4' in shown
    assert 'loss' in shown
