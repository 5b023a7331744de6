"""A zoo of one table in an empty folder, and commands that only pretend."""

import json
from pathlib import Path

import pytest
import yaml

from taskptq.bench.zoo.source import read_zoo
from taskptq.bench.zoo.work import Tools

TABLE = {
    'model': 'net',
    'dataset': 'toy',
    'config': 'configs/tiny/net_toy.py',
    'checkpoint': 'float.pth',
    'metric': 'coco/AP',
    'calibration': {'num_images': 16},
    'groups': [{'methods': 'mse', 'bits': ['w8a8', 'w4a8']}],
    'metafile': {'task': 'Detection', 'metric': 'box AP', 'factor': 100},
}
MODEL = {
    'table': 'configs/tiny/net_toy.table.yml',
    'training_data': 'toy',
    'files': [{'recipe': 'w8a8_mse'}, {'recipe': 'w4a8_mse', 'seed': 2}],
}


@pytest.fixture
def write_zoo(tmp_path, monkeypatch):
    """Write table and list into the current folder; returns the files."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        folder = Path('configs') / 'tiny'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'net_toy.table.yml').write_text(yaml.safe_dump(TABLE))
        content = {'models': [{**MODEL, **changes}]}
        Path('configs/zoo.yml').write_text(yaml.safe_dump(content))
        return read_zoo()

    return write


@pytest.fixture
def zoo_files(write_zoo):
    """The files of the plain list."""
    return write_zoo()


class Pretender:
    """Commands that write what they are told to."""

    def __init__(self):
        self.content = b'codes'
        self.metrics = {'coco/AP': 0.2844, 'coco/AP_s': float('nan')}
        self.calls = []
        self.refusal = None

    def tools(self):
        return Tools(
            quantize=self.quantize, test=self.test, export=self.export
        )

    def quantize(self, words):
        self.calls.append('quantize')
        self._out(words).write_bytes(self.content)

    def test(self, words):
        self.calls.append(f'test {Path(words[1]).suffix}')
        self._out(words).write_text(json.dumps({'metrics': self.metrics}))

    def export(self, words):
        self.calls.append('export')
        if self.refusal:
            raise SystemExit(self.refusal)
        self._out(words).write_bytes(b'graph of ' + self.content)

    def _out(self, words):
        path = Path(words[words.index('--out') + 1])
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def pretend(monkeypatch):
    """Commands of a test; an export has a single part."""
    monkeypatch.setattr('taskptq.bench.zoo.work.parts_of', lambda path: [path])
    return Pretender()
