"""Markers of reports, and the converter of VisDrone."""

import importlib
import json

import pytest


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


def cells(text, start):
    """Cells of the table line that begins so."""
    line = next(
        line
        for line in text.splitlines()
        if line.replace(' ', '').startswith(f'|{start}')
    )
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_an_absent_report(tools, tmp_path):
    text = '<!-- grid-error:absent -->\nold\n<!-- /grid-error -->\n'
    update = tools('small_objects.markers').update_grid_text
    new = update(text, tmp_path, ('configs/*',), {})
    assert new == text.replace('old', 'Not measured yet.')


def comparison(**others):
    return {
        'predicted': 0.1,
        'measured': 0.12,
        'ratio': 1.2,
        'worst': 2.0,
        'correlation': None,
        'bins': [],
        **others,
    }


def test_reports(tools, tmp_path):
    folder = tmp_path / 'configs' / 'small'
    (folder / 'results').mkdir(parents=True)
    module = tools('small_objects.markers')
    reports = {
        'grid-error': {
            'heads': {
                'box': {
                    'rounded': {'8': comparison(direct=0.01)},
                    'boxes': {'8': comparison()},
                    'layers': {
                        'w4a4_head-mse': {
                            'coordinates': comparison(),
                            'boxes': comparison(),
                        }
                    },
                }
            }
        },
        'grid-choice': {
            'heads': {
                'box': {
                    'rank': 7,
                    'candidates': 30,
                    'best': [
                        {
                            'alpha': 2.0,
                            'beta': 0.5,
                            'num_intervals': 10,
                            'rounding': 0.1,
                            'clipping': 0.0,
                            'total': 0.1,
                        }
                    ],
                    'used': {
                        'alpha': 5.0,
                        'beta': 1.0,
                        'num_intervals': 5,
                        'rounding': 0.2,
                        'clipping': 0.0,
                        'total': 0.2,
                    },
                }
            }
        },
        'gradients': {
            'models': [
                {
                    'config': 'a/plain.py',
                    'layers': {
                        'head.fc_reg': {
                            'small': {
                                'count': 5,
                                'relative_variance': 0.9,
                                'norm_spread': 1.5,
                                'variance': 1e-4,
                                'mean_norm': 0.1,
                            }
                        }
                    },
                }
            ]
        },
    }
    for kind, report in reports.items():
        (folder / 'results' / f'{kind}.json').write_text(json.dumps(report))
        text = module.render_report(
            kind, kind, root=tmp_path, families=('configs/*',)
        )
        assert text.startswith('| ')
    errors = module.render_errors(reports['grid-error'])
    assert cells(errors, 'box|logits') == [
        'box',
        'logits, 8 bits',
        '0.1000',
        '0.1200',
        '1.20',
        '2.00',
        '',
        '0.0100',
        '0.12',
    ]
    choice = module.render_choice(reports['grid-choice'])
    assert cells(choice, 'box|inuse')[1] == 'in use (7 of 30)'
    assert '1.0e-04' in module.render_gradients(reports['gradients'])


def test_visdrone(tools, tmp_path):
    from PIL import Image

    module = tools('convert_visdrone')
    split = tmp_path / 'VisDrone2019-DET-val'
    (split / 'images').mkdir(parents=True)
    (split / 'annotations').mkdir()
    Image.new('RGB', (30, 20)).save(split / 'images' / 'a.jpg')
    (split / 'annotations' / 'a.txt').write_text(
        '1,2,10,5,1,4,0,0\n3,3,4,4,0,0,0,0,\n5,5,0,3,1,1,0,0\n'
    )
    module.main([str(tmp_path)])
    found = json.loads((split / 'val.json').read_text())
    assert found['images'] == [
        {'id': 0, 'file_name': 'a.jpg', 'width': 30, 'height': 20}
    ]
    real = [one for one in found['annotations'] if not one['iscrowd']]
    assert [(one['category_id'], one['bbox']) for one in real] == [
        (4, [1, 2, 10, 5])
    ]
    crowd = [one for one in found['annotations'] if one['iscrowd']]
    assert [one['category_id'] for one in crowd] == list(range(1, 11))
    assert [one['name'] for one in found['categories']][3] == 'car'
    (split / 'annotations' / 'a.txt').write_text('1,2,3\n')
    with pytest.raises(SystemExit, match='six numbers'):
        module.main([str(tmp_path)])
    with pytest.raises(SystemExit, match='unpack'):
        module.main([str(tmp_path / 'none')])
