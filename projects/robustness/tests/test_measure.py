from pathlib import Path

import pytest
from scripts import load_script

from taskptq.engine.recipe_source import read_recipe
from taskptq.recipes import resolve

measure = load_script('robustness', 'measure')
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize('name', measure.STUDIES)
def test_studies_name_what_is_there(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = measure.STUDIES[name]
    assert (ROOT / study.config).is_file()
    for pattern in study.files:
        assert Path(measure.zoo_file(pattern)).is_file()
    for recipe in study.recipes:
        assert resolve(recipe)['qconfig']
    assert study.recipes or study.files


@pytest.mark.parametrize('names', [(), ('a-1.pth', 'a-2.pth')])
def test_a_pattern_matches_one_file(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).touch()
    with pytest.raises(SystemExit, match=f'matches {len(names)} files'):
        measure.zoo_file('a-*.pth')


def test_mixes_are_quantized_with_every_seed(tmp_path, monkeypatch):
    calls = []

    def call(words):
        calls.append(words)
        Path(words[words.index('--out') + 1]).touch()

    monkeypatch.setattr(measure, 'call', call)
    monkeypatch.setattr(measure, 'WORK_DIR', tmp_path)
    study = measure.STUDIES['retinanet_calibration']
    files = measure.quantized_files('a', study)
    assert len(files) == len(calls) == 6
    assert [word[word.index('--seed') + 1] for word in calls[:3]] == [
        '0',
        '1',
        '2',
    ]
    settings = Path(calls[3][calls[3].index('--calib') + 1])
    assert "'fog=3'" in settings.read_text()
    assert measure.quantized_files('a', study) == files
    assert len(calls) == 6


def test_learned_recipes_have_the_steps_of_the_study(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(measure, 'call', calls.append)
    monkeypatch.setattr(measure, 'WORK_DIR', tmp_path)
    measure.quantized_files('a', measure.STUDIES['cgnet'])
    plain, learned = calls
    assert plain.count('--recipe') == 1
    assert learned[-2] == '--recipe'
    parts = read_recipe(['w4a4_qdrop', learned[-1]])
    assert parts['reconstruction']['steps'] == 100


def test_options_reach_the_command(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(measure, 'WORK_DIR', tmp_path / 'work')
    monkeypatch.setattr(measure, 'RESULTS', tmp_path / 'results')

    def call(words):
        if words[0] == 'quantize':
            return
        calls.append(words)
        folder = Path(words[words.index('--out') + 1])
        for suffix in ('json', 'png'):
            (folder / f'robustness.{suffix}').write_text('{}')

    monkeypatch.setattr(measure, 'call', call)
    measure.main(['yolox', '--only', 'fog=3', '--max-images', '4'])
    (words,) = calls
    assert words[:2] == ['bench', 'robustness']
    assert words[words.index('--only') + 1] == 'fog=3'
    assert words[words.index('--max-images') + 1] == '4'
    assert (tmp_path / 'results' / 'yolox.json').is_file()
