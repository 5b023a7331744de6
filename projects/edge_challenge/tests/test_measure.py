import json
from pathlib import Path

import pytest
from scripts import load_script

measure = load_script('edge_challenge', 'measure')


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / 'float.pth'
    checkpoint.write_bytes(b'weights')

    def export_files(args, folder):
        files = {n: folder / f'{n}.onnx' for n in ('float', args.recipe)}
        for number, file in enumerate(files.values(), start=1):
            file.write_bytes(b'x' * number)
        return files

    accuracies = {'float': 0.5, 'w8a8': 0.4}
    monkeypatch.setattr(measure, 'export_files', export_files)
    monkeypatch.setattr(
        measure,
        'accuracy',
        lambda config, file, folder: {'lpcvc/mDice': accuracies[file.stem]},
    )
    monkeypatch.setattr(
        measure,
        'seconds_of',
        lambda files, *, runs: dict(zip(files, (0.1, 0.05), strict=True)),
    )
    return checkpoint


def test_the_score_is_that_of_the_exported_files(task, capsys):
    measure.main(['net.py', str(task), '--out', 'results/net.json'])
    saved = json.loads(Path('results/net.json').read_text())
    scores = {row['model']: row['score'] for row in saved['rows']}
    assert scores == {'float': pytest.approx(5), 'w8a8': pytest.approx(8)}
    assert [row['file_bytes'] for row in saved['rows']] == [1, 2]
    assert '--recipe w8a8 ' in saved['command']
    assert '"score": 5.0' in capsys.readouterr().out
