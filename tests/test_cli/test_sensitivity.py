import json

import pytest

from taskptq.cli.main import main


@pytest.fixture
def run(tiny_path, float_checkpoint, capsys):
    def run(*options):
        main(
            [
                'sensitivity',
                str(tiny_path),
                str(float_checkpoint),
                '--num-images',
                '4',
                '--device',
                'cpu',
                *options,
            ]
        )
        return capsys.readouterr().out

    return run


def test_tables_sentences_and_files(run, tmp_path):
    text = run('--recipe', 'w4a4', '--out', str(tmp_path), '--most', '3')
    assert 'Output loss of one tensor at a time (gradient, 4 images)' in text
    assert 'Output loss by role' in text
    assert 'One tensor costs' in text
    assert f'Report: {tmp_path / "sensitivity.json"}' in text
    content = json.loads((tmp_path / 'sensitivity.json').read_text())
    assert {point['num_bits'] for point in content['points']} == {4, 8}


def test_measured_without_roles(run):
    text = run('--estimator', 'leave-out', '--no-roles')
    assert '(leave-out, 4 images)' in text
    assert 'by role' not in text


def test_refusals_are_one_sentence(run):
    with pytest.raises(SystemExit, match='recipe'):
        run('--recipe', 'w8a8_nothing')
