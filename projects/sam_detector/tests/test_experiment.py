"""What pictures take over from tables."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sam_detector.experiment import evenly_spaced, read_experiment
from sam_detector.key_comparison import (
    BIMODAL,
    NATURAL,
    REWRITTEN,
    compact_json,
    draw_keys,
    own_rewrites,
    shift_seed,
)
from sam_detector.row_sums import measure_row_sums, write_row_sums

ROOT = Path(__file__).resolve().parents[3]
TABLES = 'projects/sam_detector/configs/{}_nuclei.table.yml'


@pytest.fixture
def tables(monkeypatch):
    """Both tables, read from the repository's top level."""
    monkeypatch.chdir(ROOT)
    return {
        name: read_experiment(TABLES.format(name))
        for name in ('sam-tiny', 'sam-tiny-bimodal')
    }


def test_recipes_are_those_of_the_table(tables):
    natural, bimodal = tables.values()
    content = yaml.safe_load(Path(TABLES.format('sam-tiny')).read_text())
    learned = natural.recipe('w4a4_ptq4sam-l', seed=3)
    for key, value in content['reconstruction'].items():
        assert learned.reconstruction[key] == value
    assert learned.seed == learned.reconstruction['seed'] == 3
    assert (
        learned.calibration['num_images']
        == (content['calibration']['num_images'])
    )
    assert [r['type'] for r in learned.rewrites] == ['BimodalIntegration']
    assert natural.recipe('w4a4_mse').reconstruction is None
    assert [
        r['type'] for r in bimodal.recipe('w4a4_centering-s').rewrites
    ] == ['KeyShift', 'AttentionCentering']


def test_a_row_without_recipe_is_an_error(tables):
    with pytest.raises(ValueError, match=r"there is no method 'best'"):
        tables['sam-tiny'].settings('w4a4_best')


def test_settings_of_single_groups_are_refused(tmp_path):
    path = tmp_path / 'a.table.yml'
    path.write_text(
        yaml.safe_dump(
            {
                'groups': [
                    {
                        'methods': ['mse'],
                        'bits': ['w4a4'],
                        'qconfig': {'edge_bits': 8},
                    }
                ]
            }
        )
    )
    with pytest.raises(ValueError, match='a group sets qconfig'):
        read_experiment(path)


def test_images_are_spaced_evenly():
    assert evenly_spaced(120, count=4) == [15, 45, 75, 105]
    assert evenly_spaced(3, count=3) == [0, 1, 2]
    with pytest.raises(ValueError, match='choose from 1 to 3'):
        evenly_spaced(3, count=4)


def test_stages_have_the_rewrites_they_are_named_after(tables):
    bimodal = tables['sam-tiny-bimodal']
    found = {
        stage: [r['type'] for r in own_rewrites(bimodal, row)]
        for stage, row in REWRITTEN.items()
    }
    assert found == {
        'after BIG': ['BimodalIntegration'],
        'after centering': ['AttentionCentering'],
    }
    assert shift_seed(bimodal) == 0
    with pytest.raises(ValueError, match='sam-tiny has no KeyShift'):
        shift_seed(tables['sam-tiny'])


def test_json_is_compact():
    text = compact_json(
        {'edges': [0.123456, -2.0], 'names': ['a', 'b'], 'n': 3}
    )
    assert '"edges": [0.1235, -2.0]' in text
    assert yaml.safe_load(text) == {
        'edges': [0.1235, -2.0],
        'names': ['a', 'b'],
        'n': 3,
    }


def test_attentions_of_the_bimodal_stages_are_drawn(tmp_path):
    keys = {
        'histogram': {'edges': [0.0, 1.0, 2.0], 'density': [0.5, 0.5]},
        'peaks': {'positions': [0.5]},
        'range': [0.0, 2.0],
    }
    token = 'sam.mask_decoder.transformer.layers.0.cross_attn_token_to_image'
    stages = {
        NATURAL: {'sam.image_encoder.blocks.0.attn': keys, token: keys},
        BIMODAL: {token: keys},
    }
    out = tmp_path / 'keys.png'
    draw_keys(stages, out)
    assert out.stat().st_size > 1000


@pytest.mark.data('nuclei')
def test_uniform_attention_loses_mass_and_power_of_two_does_not(
    tables, tmp_path
):
    table = tables['sam-tiny']
    # The image encoder is looked at; prompts would take most of the time.
    few = tmp_path / 'few_prompts.py'
    few.write_text(
        f"_base_ = ['{(ROOT / table.config).as_posix()}']\n"
        "model = dict(prompts=('detector',), test_cfg=dict(max_prompts=4))\n"
    )
    experiment = replace(table, config=str(few), calibration={'num_images': 1})
    rows = ['w4a4_mse', 'w4a4_agq-s']
    found = measure_row_sums(experiment, rows, num_images=1, work_dir=tmp_path)
    assert list(found) == rows
    encoder = {
        row: [
            errors['bias']
            for name, errors in sums.items()
            if 'image_encoder' in name
        ]
        for row, sums in found.items()
    }
    assert len(encoder['w4a4_mse']) == 6
    assert sum(encoder['w4a4_mse']) / 6 < -0.2
    assert max(map(abs, encoder['w4a4_agq-s'])) < 0.1
    out = tmp_path / 'sums.json'
    write_row_sums(
        found, out, experiment=experiment, command='make', num_images=1, seed=0
    )
    content = yaml.safe_load(out.read_text())
    assert content['row_sum_errors'].keys() == found.keys()
    assert content['command'] == 'make'
    with pytest.raises(ValueError, match=r"there is no method 'best'"):
        measure_row_sums(
            experiment, ['w4a4_best'], num_images=1, work_dir=tmp_path
        )
