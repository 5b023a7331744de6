import importlib
import json
import re

import pytest
import yaml

pytest.importorskip('mmengine')

README = """# Tiny

<!-- table:tiny_set -->
old
<!-- /table -->

between

<!-- targets:tiny_set -->
<!-- /targets -->
end
"""


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


def make_row(method, value, *, bits='w2a4', seed=0, **others):
    return {
        'method': method,
        'bits': bits,
        'seed': seed,
        'value': value,
        'metrics': {'coco/bbox_mAP': value, 'coco/RBC_precision': 2 * value},
        'calibration_seconds': 10.0,
        'reconstruction_seconds': 0.0,
        'file_bytes': 2048,
        'decided': None,
        **others,
    }


def make_results(*rows):
    return {
        'model': 'tiny',
        'dataset': 'set',
        'split': 'test',
        'metric': 'coco/bbox_mAP',
        'rows': list(rows),
        'float': {
            'config': 'c.py',
            'checkpoint': 'c.pth',
            'value': 0.5,
            'metrics': {'coco/RBC_precision': 0.45},
        },
        'environment': {},
    }


SEEDS = [
    make_row(
        'qdrop', value, seed=seed, decided=0.998, reconstruction_seconds=120.0
    )
    for seed, value in enumerate((0.45, 0.46, 0.47))
]


@pytest.fixture
def repo(tmp_path):
    """A repository with one family, its table and results."""
    family = tmp_path / 'configs' / 'tiny'
    (family / 'results').mkdir(parents=True)
    (family / 'README.md').write_text(README)
    (tmp_path / 'README.md').write_text(
        '<!-- table:summary -->\n<!-- /table -->\n'
    )
    (family / 'tiny_set.table.yml').write_text(
        yaml.safe_dump(
            {
                'model': 'tiny',
                'dataset': 'set',
                'config': 'c.py',
                'checkpoint': 'c.pth',
                'metric': 'coco/bbox_mAP',
                'groups': [{'methods': ['mse', 'qdrop'], 'bits': ['w2a4']}],
                'columns': {
                    'AP': 'coco/bbox_mAP',
                    'RBC': 'coco/RBC_precision',
                },
                'metafile': {
                    'task': 'Object Detection',
                    'metric': 'box AP',
                    'factor': 100,
                },
                'targets': [
                    {
                        'name': 'keeps',
                        'method': 'qdrop',
                        'bits': 'w2a4',
                        'min_share_of_float': 0.94,
                    }
                ],
            }
        )
    )
    (family / 'metafile.yml').write_text(
        yaml.safe_dump(
            {
                'Collections': [{'Name': 'Tiny'}],
                'Models': [
                    {'Name': 'tiny_set', 'Results': []},
                    {'Name': 'other', 'Results': ['kept']},
                ],
            },
            sort_keys=False,
        )
    )
    (family / 'results' / 'tiny_set.json').write_text(
        json.dumps(make_results(make_row('mse', 0.2), *SEEDS))
    )
    return tmp_path


def cells(text, start):
    """Cells of the table line that begins so."""
    line = next(
        line
        for line in text.splitlines()
        if re.match(start, line.replace(' ', ''))
    )
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_writes_tables_and_leaves_the_rest(tools, repo):
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    text = (repo / 'configs' / 'tiny' / 'README.md').read_text()
    assert cells(text, r'\|bits')[:5] == [
        'bits',
        'method',
        'AP',
        'of float',
        'RBC',
    ]
    assert cells(text, r'\|32\|float')[2:5] == ['0.500', '100.0%', '0.450']
    assert cells(text, r'\|w2a4\|mse')[2:] == [
        '0.200',
        '40.0%',
        '0.400',
        '10',
        '',
        '',
        '2',
    ]
    assert cells(text, r'\|w2a4\|qdrop')[2:] == [
        '0.460 ± 0.010 (3)',
        '92.0%',
        '0.920',
        '10',
        '120',
        '99.8%',
        '2',
    ]
    assert 'short by 2.0%' in text
    assert text.startswith('# Tiny\n\n<!-- table:tiny_set -->\n| bits')
    assert '<!-- /table -->\n\nbetween\n\n<!-- targets' in text
    assert text.endswith('<!-- /targets -->\nend\n')


SUMMARY_ROWS = [
    make_row('mse', 0.49, bits='w8a8'),
    make_row('gptq', 0.47, bits='w4a8'),
    make_row('mse', 0.3, bits='w4a4'),
    make_row('qdrop', 0.48, bits='w4a4'),
]


def write_results(repo, *rows):
    """Replace the results of the tiny model."""
    path = repo / 'configs' / 'tiny' / 'results' / 'tiny_set.json'
    path.write_text(json.dumps(make_results(*rows)))


def test_writes_the_summary_of_the_top_readme(tools, repo):
    recommended = [
        make_row('mixed', value, bits='w8a8', seed=seed)
        for seed, value in enumerate((0.49, 0.5, 0.51))
    ]
    write_results(repo, *SUMMARY_ROWS, *recommended)
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    text = (repo / 'README.md').read_text()
    head, line = cells(text, r'\|model'), cells(text, r'\|tiny')
    found = dict(zip(head, line, strict=True))
    assert found['float'] == '0.500'
    assert found['w8a8'] == '0.500 ± 0.010 (3), mixed'
    assert found['w4a8'] == '0.470, gptq'
    assert found['w4a4'] == '0.480, qdrop'
    assert '' not in line


def test_the_summary_leaves_out_models_without_all_results(tools, repo):
    write_results(repo, *SUMMARY_ROWS[:1], *SUMMARY_ROWS[2:])
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    text = (repo / 'README.md').read_text()
    assert 'tiny' not in text
    assert 'Not measured yet.' in text


def test_rows_of_named_recipes(tools, repo):
    text = fill_marker(
        tools,
        repo,
        'rows:tiny_set w2a4_qdrop w4a4_mse',
        make_row('mse', 0.2),
        make_row('mse', 0.3, bits='w4a4'),
        *SEEDS,
    )
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    assert [line.strip('| ').split(' | ')[0].strip() for line in lines] == [
        'bits',
        '32',
        'w4a4',
        'w2a4',
    ]
    assert cells(text, r'\|w2a4')[1:3] == ['qdrop', '0.460 ± 0.010 (3)']


def test_one_line_for_each_model_of_a_folder(tools, repo):
    marker = 'models:configs/tiny w2a4_mse w2a4_qdrop'
    text = fill_marker(tools, repo, marker, make_row('mse', 0.2), *SEEDS)
    assert cells(text, r'\|tiny')[3:] == [
        '0.500',
        '0.200',
        '0.460 ± 0.010 (3)',
    ]


@pytest.mark.parametrize(
    ('marker', 'message'),
    [
        ('rows:tiny_set', 'at least one'),
        ('rows:tiny_set w2a4', 'bits_method'),
        ('rows:tiny_set w2a4_absent', 'w2a4_absent'),
        ('rows:unknown w2a4_mse', "no table 'unknown'"),
        ('models:configs/other w2a4_mse', 'configs/other'),
        ('models:configs/tiny', 'at least one'),
    ],
)
def test_rows_and_models_that_are_not_there(tools, repo, marker, message):
    kind = marker.partition(':')[0]
    (repo / 'README.md').write_text(f'<!-- {marker} -->\n<!-- /{kind} -->\n')
    with pytest.raises(SystemExit, match=message):
        tools('taskptq.cli.collect').main(['--root', str(repo)])


def test_pages_of_results_are_written_too(tools, repo):
    page = repo / 'configs' / 'tiny' / 'RESULTS.md'
    page.write_text('<!-- table:tiny_set -->\n<!-- /table -->\n')
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    assert cells(page.read_text(), r'\|w2a4\|mse')[2] == '0.200'


def test_writes_results_of_metafiles(tools, repo):
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    content = yaml.safe_load(
        (repo / 'configs' / 'tiny' / 'metafile.yml').read_text()
    )
    first, second = content['Models']
    assert second['Results'] == ['kept']
    assert [r['Metrics']['box AP'] for r in first['Results']] == [
        50.0,
        20.0,
        46.0,
    ]
    assert first['Results'][2]['Quantization'] == 'qdrop w2a4'


def test_check_finds_what_is_out_of_date(tools, repo):
    collect = tools('taskptq.cli.collect')
    readme = repo / 'configs' / 'tiny' / 'README.md'
    with pytest.raises(SystemExit, match=r'configs/tiny/README\.md') as caught:
        collect.main(['--root', str(repo), '--check'])
    assert caught.value.code != 0
    assert readme.read_text() == README
    collect.main(['--root', str(repo)])
    collect.main(['--root', str(repo), '--check'])
    readme.write_text(readme.read_text().replace('0.460', '0.490'))
    with pytest.raises(SystemExit, match='out of date'):
        collect.main(['--root', str(repo), '--check'])


def test_what_is_not_measured_says_so(tools, repo):
    (repo / 'configs' / 'tiny' / 'results' / 'tiny_set.json').unlink()
    tools('taskptq.cli.collect').main(['--root', str(repo)])
    text = (repo / 'configs' / 'tiny' / 'README.md').read_text()
    assert text.count('Not measured yet.\n') == 2
    assert 'old' not in text


def test_a_marker_without_table_is_an_error(tools, repo):
    (repo / 'README.md').write_text(
        '<!-- table:nothing -->\n<!-- /table -->\n'
    )
    with pytest.raises(SystemExit, match='nothing'):
        tools('taskptq.cli.collect').main(['--root', str(repo)])


def test_prints_targets(tools, repo, capsys):
    tools('taskptq.cli.collect').main(['--root', str(repo), '--targets'])
    out = capsys.readouterr().out
    assert 'fail     keeps: qdrop keeps 92.0% of float' in out
    assert 'target 94.0%' in out


def test_the_repository_is_up_to_date(tools):
    tools('taskptq.cli.collect').main(['--check'])


def grid(tau, error, error_tau1, error_uniform):
    return {
        'tau': tau,
        'scale': [0.5] * len(tau),
        'error': error,
        'error_tau1': error_tau1,
        'error_uniform': error_uniform,
    }


SOFTMAX = {
    'sam.encoder.0.attn.softmax_quantizer': grid([2], 0.1, 0.3, 0.2),
    'sam.decoder.self_attn.softmax_quantizer': grid([1], 0.3, 0.3, 0.4),
    'sam.decoder.final.softmax_quantizer': grid([4], 0.5, 0.6, 0.4),
}


def fill_marker(tools, repo, marker, *rows, **others):
    """What collect_results writes between a marker's two lines."""
    results = make_results(*rows)
    results['float'] |= others
    (repo / 'configs' / 'tiny' / 'results' / 'tiny_set.json').write_text(
        json.dumps(results)
    )
    kind = marker.partition(':')[0]
    (repo / 'README.md').write_text(
        f'<!-- {marker} -->\nold\n<!-- /{kind} -->\n'
    )
    collect = tools('taskptq.cli.collect')
    collect.main(['--root', str(repo)])
    collect.main(['--root', str(repo), '--check'])
    text = (repo / 'README.md').read_text()
    assert text.startswith(f'<!-- {marker} -->\n')
    assert text.endswith(f'\n<!-- /{kind} -->\n')
    return text


def test_softmax_counts_what_is_below_both(tools, repo):
    text = fill_marker(
        tools,
        repo,
        'softmax:tiny_set',
        make_row('mse', 0.2, bits='w4a4'),
        make_row('agq-s', 0.3, bits='w4a4', softmax=SOFTMAX),
    )
    assert cells(text, r'\|attention')[1:] == [
        'tau',
        'error',
        'tau = 1',
        'uniform',
    ]
    assert cells(text, r'\|`encoder.0.attn`')[1:] == [
        '2',
        '0.1000',
        '0.3000',
        '0.2000',
    ]
    assert cells(text, r'\|`decoder.self_attn`')[1] == '1'
    assert (
        'below both tau = 1 and uniform on 1 of 3 softmaxes, and above '
        'neither on 2.'
    ) in text
    assert 'Row: agq-s w4a4, seed 0.' in text


@pytest.mark.parametrize(
    ('marker', 'title'),
    [
        ('softmax:tiny_set', 'ptq4sam-s w4a4, seed 0'),
        (
            'softmax:tiny_set centering+agq-head-s w3a3',
            'centering+agq-head-s w3a3, seed 0',
        ),
        ('softmax:tiny_set ptq4sam-s w4a4 1', 'ptq4sam-s w4a4, seed 1'),
    ],
)
def test_a_marker_may_name_its_row(tools, repo, marker, title):
    heads = {'a.softmax_quantizer': grid([4, 0, 4], 0.1, 0.2, 0.2)}
    rows = [
        make_row('centering+agq-head-s', 0.3, bits='w3a3', softmax=heads),
        make_row('agq-s', 0.3, bits='w4a4', softmax=SOFTMAX),
    ]
    rows += [
        make_row('ptq4sam-s', 0.3, bits='w4a4', softmax=SOFTMAX, seed=seed)
        for seed in (0, 1)
    ]
    text = fill_marker(tools, repo, marker, *rows)
    assert f'Row: {title}.' in text
    if 'head' in marker:
        assert cells(text, r'\|`a`')[1] == 'uniform (1 head), 4 (2 heads)'


@pytest.mark.parametrize(
    ('marker', 'message'),
    [
        ('softmax:tiny_set ptq4sam-s', 'give <method> <bits>'),
        ('table:tiny_set mse w2a4', 'leave it out'),
        ('baselines:tiny_set', 'no <prompts>/miou_box'),
    ],
)
def test_wrong_markers_are_errors(tools, repo, marker, message):
    with pytest.raises(SystemExit, match=message):
        fill_marker(tools, repo, marker, make_row('mse', 0.2))


def test_a_row_that_is_not_there_says_so(tools, repo):
    text = fill_marker(
        tools,
        repo,
        'softmax:tiny_set agq-s w2a4',
        make_row('agq-s', 0.3, bits='w4a4', softmax=SOFTMAX),
    )
    assert 'Not measured yet.' in text


def test_peaks_tells_what_was_decided(tools, repo):
    def entry(name, status, reason, **details):
        return {
            'name': name,
            'part': 'query and key',
            'status': status,
            'reason': reason,
            'max_relative_error': None,
            'details': details,
        }

    rewrites = [
        {'rewrite': 'KeyShift', 'entries': [entry('sam.x', 'applied', '')]},
        {
            'rewrite': 'BimodalIntegration',
            'entries': [
                entry(
                    'sam.0.cross',
                    'applied',
                    '',
                    num_positive=20,
                    num_negative=12,
                    range_before=[-6.0, 5.5],
                    range_after=[-1.0, 6.25],
                    peaks={'positions': [-4.0, 4.0]},
                ),
                entry(
                    'sam.1.cross',
                    'unchanged',
                    'its keys have 1 peaks, not 2',
                    peaks={'positions': [0.1]},
                ),
                entry('sam.final', 'skipped', 'it never ran'),
            ],
        },
    ]
    text = fill_marker(
        tools,
        repo,
        'peaks:tiny_set',
        make_row('mse', 0.2),
        make_row('big-s', 0.3, rewrites=rewrites),
    )
    assert cells(text, r'\|`0.cross`')[1:] == [
        '2',
        '12 of 32 channels flipped',
        '-6.00 to 5.50',
        '-1.00 to 6.25',
    ]
    assert cells(text, r'\|`1.cross`')[1:] == [
        '1',
        'unchanged: its keys have 1 peaks, not 2',
        '',
        '',
    ]
    assert cells(text, r'\|`final`')[1:3] == ['', 'skipped: it never ran']
    assert '`x`' not in text


def test_baselines_stand_beside_the_float_model(tools, repo):
    text = fill_marker(
        tools,
        repo,
        'baselines:tiny_set',
        make_row('mse', 0.2),
        metrics={
            'gt_box/miou': 0.9,
            'gt_box/miou_box': 0.7434,
            'gt_box/miou_ellipse': 0.7995,
            'detector/matched_miou': 0.88,
            'detector/matched_miou_box': 0.7,
            'detector/matched_miou_ellipse': 0.75,
        },
    )
    assert (
        '- mean IoU, prompts `gt_box`: filled box 0.7434, inscribed '
        'ellipse 0.7995, float model 0.9000\n'
    ) in text
    assert (
        '- mean IoU, prompts `detector`, objects found: filled box '
        '0.7000, inscribed ellipse 0.7500, float model 0.8800\n'
    ) in text


def test_methods_and_bits_have_their_order(tools):
    markdown = tools('taskptq.bench.markdown')
    found = list(
        markdown.groups(
            make_results(
                *(
                    make_row(method, 0.1, bits=bits)
                    for bits in ('w3a3', 'w6a6')
                    for method in (
                        'zzz',
                        'centering+hybrid-head',
                        'ptq4sam-l',
                        'mse',
                    )
                )
            )
        )
    )
    assert [(bits, method) for bits, method, _ in found] == [
        (bits, method)
        for bits in ('w6a6', 'w3a3')
        for method in ('mse', 'ptq4sam-l', 'centering+hybrid-head', 'zzz')
    ]


@pytest.mark.parametrize(
    ('values', 'status', 'short_by'),
    [
        ((0.45, 0.46, 0.47), 'pass', 0.0),
        ((0.39, 0.41, 0.43), 'fail', 0.03),
    ],
)
def test_above_counts_the_seed_spread(tools, values, status, short_by):
    rows = [make_row('qdrop', v, seed=s) for s, v in enumerate(values)]
    others = [
        make_row(method, value, seed=seed)
        for seed in (0, 1)
        for method, value in (('minmax', 0.1), ('mse', 0.4))
    ]
    results = make_results(*others, *rows)
    (record,) = tools('taskptq.bench.targets').evaluate_targets(
        [
            {
                'name': 'above',
                'method': 'qdrop',
                'bits': 'w2a4',
                'above': ['minmax', 'mse'],
            }
        ],
        results,
    )
    assert record['status'] == status
    assert record['short_by'] == pytest.approx(short_by)
    assert record['measured'] == pytest.approx(sum(values) / 3 - 0.4)
    assert record['discriminating']


@pytest.mark.parametrize(
    ('value', 'status'), [(0.5, 'one seed'), (0.3, 'fail')]
)
def test_a_single_seed_exceeds_no_spread(tools, value, status):
    rows = [make_row('qdrop', value, seed=s) for s in range(3)]
    results = make_results(make_row('mse', 0.4), *rows)
    target = {'name': 'n', 'method': 'qdrop', 'bits': 'w2a4', 'above': 'mse'}
    (record,) = tools('taskptq.bench.targets').evaluate_targets(
        [target], results
    )
    assert record['status'] == status


def test_the_larger_spread_of_the_two_counts(tools):
    results = make_results(
        make_row('qdrop', 0.42),
        make_row('mse', 0.38),
        make_row('mse', 0.42, seed=1),
    )
    (record,) = tools('taskptq.bench.targets').evaluate_targets(
        [{'name': 'n', 'method': 'qdrop', 'bits': 'w2a4', 'above': 'mse'}],
        results,
    )
    assert record['required'] == pytest.approx(0.04)
    assert record['status'] == 'fail'


@pytest.mark.parametrize(
    ('extra', 'status'),
    [
        ({'against': ['mse']}, 'reported'),
        ({}, 'reported'),
        ({'above': ['brecq']}, 'missing'),
        ({'min_share_of_float': 0.92}, 'pass'),
    ],
)
def test_status_of_other_targets(tools, extra, status):
    targets = tools('taskptq.bench.targets')
    results = make_results(make_row('mse', 0.2), *SEEDS)
    (record,) = targets.evaluate_targets(
        [{'name': 'n', 'method': ['mse', 'qdrop'], 'bits': 'w2a4', **extra}],
        results,
    )
    assert record['status'] == status
    assert targets.describe(record).startswith(status)


def test_bits_where_plain_works_do_not_discriminate(tools):
    targets = tools('taskptq.bench.targets')
    (record,) = targets.evaluate_targets(
        [{'name': 'n', 'method': 'mse', 'bits': 'w8a8', 'above': 'minmax'}],
        make_results(
            make_row('mse', 0.5, bits='w8a8'),
            make_row('minmax', 0.48, bits='w8a8'),
        ),
    )
    assert record['discriminating'] is False
    assert 'do not discriminate' in targets.describe(record)


def test_unknown_key_of_a_target_is_an_error(tools):
    with pytest.raises(ValueError, match='over'):
        tools('taskptq.bench.targets').evaluate_targets(
            [{'name': 'n', 'method': 'mse', 'bits': 'w8a8', 'over': 'x'}],
            make_results(),
        )


def test_results_are_written_whole(tools, tmp_path):
    results = tools('taskptq.bench.results')
    path = tmp_path / 'new' / 'r.json'
    results.save_results({'rows': []}, path)
    with pytest.raises(ValueError, match='JSON compliant'):
        results.save_results({'rows': [float('nan')]}, path)
    assert results.load_results(path) == {'rows': []}
    assert [p.name for p in path.parent.iterdir()] == ['r.json']
