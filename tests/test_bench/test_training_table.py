"""Float models, relative losses, and what the README says of grids."""

import importlib
import json
import re
import shlex
import statistics
from types import SimpleNamespace

import pytest
import torch
import yaml

pytest.importorskip('mmengine')

AP = 'coco/bbox_mAP_s'


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


def content(**changes):
    return {
        'metric': 'coco/bbox_mAP',
        'columns': {'AP': 'coco/bbox_mAP', 'AP small': AP},
        'variants': [
            {
                'name': 'plain',
                'title': 'Smooth-L1',
                'config': 'plain.py',
                'seeds': [0, 1],
            },
            {'name': 'grid', 'config': 'grid.py', 'seeds': [0, 1]},
            {'name': 'um', 'config': 'um.py'},
        ],
        'targets': [
            {
                'name': 'gain',
                'metric': AP,
                'variants': ['grid', 'um'],
                'baseline': 'plain',
                'min_gain': 0.01,
            }
        ],
        **changes,
    }


def row(variant, seed, small, *, seconds=100.0):
    return {
        'variant': variant,
        'seed': seed,
        'config': f'{variant}.py',
        'value': 0.5,
        'metrics': {'coco/bbox_mAP': 0.5, AP: small},
        'train_seconds': 2 * seconds,
        'train_cpu_seconds': seconds,
        'parameters': 1000,
    }


@pytest.fixture
def folder(tmp_path):
    """A family with a table of float models, results not yet."""
    family = tmp_path / 'configs' / 'small'
    (family / 'results').mkdir(parents=True)
    (family / 'tiny.train.yml').write_text(yaml.safe_dump(content()))
    return family


def write_rows(folder, *rows):
    (folder / 'results' / 'tiny.train.json').write_text(
        json.dumps(
            {'name': 'tiny', 'metric': 'coco/bbox_mAP', 'rows': list(rows)}
        )
    )


def cells(text, start):
    """Cells of the table line that begins so."""
    line = next(
        line
        for line in text.splitlines()
        if line.replace(' ', '').startswith(f'|{start}')
    )
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_first_seeds_run_first(tools, folder):
    table = tools('taskptq.bench.training_table').read_training_table(
        folder / 'tiny.train.yml'
    )
    assert table.name == 'tiny'
    assert [run.name for run in table.runs()] == [
        'plain 0',
        'grid 0',
        'um 0',
        'plain 1',
        'grid 1',
    ]


def test_the_float_model_is_recorded(tools, folder):
    module = tools('taskptq.bench.training_table')
    path = folder / 'tiny.train.yml'
    assert module.read_training_table(path).float_reference() is None
    path.write_text(yaml.safe_dump(content(float_of='tiny')))
    table = module.read_training_table(path)
    assert table.float_reference() is None
    reference = {'config': 'tiny.py', 'value': 0.5}
    (folder / 'results' / 'tiny.json').write_text(
        json.dumps({'float': reference, 'rows': []})
    )
    assert table.float_reference() == reference


def test_means_and_spreads(tools, folder):
    module = tools('taskptq.bench.training_table')
    table = module.read_training_table(folder / 'tiny.train.yml')
    assert module.render_training(table) == module.ABSENT
    write_rows(
        folder,
        row('plain', 0, 0.30),
        row('plain', 1, 0.31),
        row('grid', 0, 0.34, seconds=120.0),
    )
    text = module.render_training(table)
    assert cells(text, 'variant') == [
        'variant',
        'AP',
        'AP small',
        'seeds',
        'training, CPU s',
        'parameters',
    ]
    assert cells(text, 'Smooth') == [
        'Smooth-L1',
        '0.500 ± 0.000',
        '0.305 ± 0.005',
        '2',
        '100',
        '1000',
    ]
    assert cells(text, 'grid') == [
        'grid',
        '0.500',
        '0.340',
        '1',
        '120',
        '1000',
    ]
    assert '| um' not in text


@pytest.mark.parametrize(
    ('values', 'status'),
    [
        ([0.34, 0.35], 'pass'),
        # A gain that the spread of the baseline covers.
        ([0.318, 0.318], 'fail'),
        ([0.34], 'one seed'),
        ([], 'missing'),
    ],
)
def test_a_gain_must_exceed_the_spread(tools, folder, values, status):
    module = tools('taskptq.bench.training_table')
    write_rows(
        folder,
        row('plain', 0, 0.30),
        row('plain', 1, 0.32),
        *(row('grid', i, value) for i, value in enumerate(values)),
    )
    table = module.read_training_table(folder / 'tiny.train.yml')
    (record,) = module.evaluate_training_targets(table)
    assert record['status'] == status
    assert module.describe_training_target(record).startswith(status)


def test_variants_of_several_seeds_come_first(tools, folder):
    module = tools('taskptq.bench.training_table')
    rows = [
        row('plain', 0, 0.30),
        row('plain', 1, 0.30),
        row('grid', 0, 0.34),
        row('um', 0, 0.35),
    ]
    table = module.read_training_table(folder / 'tiny.train.yml')
    write_rows(folder, *rows)
    (record,) = module.evaluate_training_targets(table)
    assert (record['variant'], record['status']) == ('um', 'one seed')
    write_rows(folder, *rows, row('grid', 1, 0.34))
    (record,) = module.evaluate_training_targets(table)
    assert (record['variant'], record['status']) == ('grid', 'pass')


@pytest.mark.parametrize(
    ('values', 'status'),
    [
        ([0.33, 0.35], 'pass'),
        ([0.31, 0.32], 'fail'),
        ([0.34], 'one seed'),
        ([], 'missing'),
    ],
)
def test_a_share_of_the_float_model(tools, folder, values, status):
    module = tools('taskptq.bench.training_table')
    target = {
        'name': 'one bit keeps 80 %',
        'metric': AP,
        'variants': ['grid'],
        'min_share_of_float': 0.8,
    }
    path = folder / 'tiny.train.yml'
    own = content(targets=[target]) | {'float_of': 'tiny'}
    path.write_text(yaml.safe_dump(own))
    write_rows(
        folder, *(row('grid', i, value) for i, value in enumerate(values))
    )
    table = module.read_training_table(path)
    reference = table.results.with_name('tiny.json')
    reference.write_text(
        json.dumps({'rows': [], 'float': {'metrics': {AP: 0.42}}})
    )
    (record,) = module.evaluate_training_targets(table)
    line = module.describe_training_target(record)
    assert record['status'] == status
    assert line.startswith(status)
    if values:
        assert record['share'] == pytest.approx(statistics.mean(values) / 0.42)
        assert 'of float' in line


def test_a_ratio_is_bounded(tools, folder):
    module = tools('taskptq.bench.training_table')
    target = {
        'name': 'cost',
        'metric': 'train_cpu_seconds',
        'variants': ['grid'],
        'baseline': 'plain',
        'max_ratio': 1.1,
    }
    path = folder / 'tiny.train.yml'
    path.write_text(yaml.safe_dump(content(targets=[target])))
    write_rows(
        folder, row('plain', 0, 0.3), row('grid', 0, 0.3, seconds=120.0)
    )
    (record,) = module.evaluate_training_targets(
        module.read_training_table(path)
    )
    assert record['status'] == 'fail'
    assert record['ratio'] == pytest.approx(1.2)


def test_unknown_keys_are_refused(tools, folder):
    module = tools('taskptq.bench.training_table')
    path = folder / 'tiny.train.yml'
    path.write_text(yaml.safe_dump(content(colums={})))
    with pytest.raises(ValueError, match='colums'):
        module.read_training_table(path)
    path.write_text(yaml.safe_dump({'metric': 'a'}))
    with pytest.raises(ValueError, match='variants'):
        module.read_training_table(path)


def test_runs_what_is_lacking(tools, folder, monkeypatch, tmp_path):
    module = tools('taskptq.cli.bench_training')
    calls = []

    def call(words):
        calls.append(words)
        name = words[1].rpartition('.')[2]
        work = tmp_path / words[words.index('--work-dir') + 1]
        work.mkdir(parents=True, exist_ok=True)
        if name == 'train':
            (work / 'last_checkpoint').write_text('model.pth')
        else:
            out = tmp_path / words[words.index('--out') + 1]
            out.write_text(
                json.dumps(
                    {
                        'metrics': {'coco/bbox_mAP': 0.4, AP: None},
                        'eval_seconds': 3.0,
                    }
                )
            )
        return 10.0, 8.0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, 'call', call)
    monkeypatch.setattr(module, 'count_parameters', lambda path: 7)
    path = folder / 'tiny.train.yml'
    module.main([str(path), '--runs', '^grid 0'])
    assert [words[1].rpartition('.')[2] for words in calls] == [
        'train',
        'test',
    ]
    assert calls[0][2] == 'grid.py'
    assert calls[0][calls[0].index('--seed') + 1] == '0'
    (found,) = json.loads(
        (folder / 'results' / 'tiny.train.json').read_text()
    )['rows']
    assert found['value'] == 0.4
    assert found['metrics'] == {'coco/bbox_mAP': 0.4}
    assert found['train_cpu_seconds'] == 8.0
    assert '--runs' in found['command']
    module.main([str(path), '--runs', '^grid 0'])
    assert len(calls) == 2
    # A training that was interrupted goes on.
    module.WORK_DIR.joinpath('tiny', 'um_seed0').mkdir(parents=True)
    module.WORK_DIR.joinpath('tiny', 'um_seed0', 'last_checkpoint').write_text(
        'model.pth'
    )
    module.main([str(path), '--runs', '^um'])
    assert '--resume' in calls[2]
    assert len(calls) == 4
    # A finished one whose row was lost is only tested, unless asked for.
    (folder / 'results' / 'tiny.train.json').unlink()
    module.main([str(path), '--runs', '^um'])
    assert len(calls) == 5
    assert calls[4][1] == 'taskptq.cli.test'
    module.main([str(path), '--runs', '^um', '--redo'])
    assert calls[5][1] == 'taskptq.cli.train'
    assert '--resume' not in calls[5]


def test_a_command_finds_its_run(tools, folder):
    module, tables = (
        tools('taskptq.cli.bench_training'),
        tools('taskptq.bench.training_table'),
    )
    path = folder / 'tiny.train.yml'
    variant = dict(content()['variants'][0], name='drd+relative')
    path.write_text(yaml.safe_dump(content(variants=[variant])))
    table = tables.read_training_table(path)
    run = table.runs()[0]
    words = shlex.split(module.command_of(table, run, []))
    pattern = words[words.index('--runs') + 1]
    assert re.search(pattern, run.name)
    assert run.name == 'drd+relative 0'


def results(model, **values):
    return {
        'model': model,
        'dataset': 'set',
        'metric': 'm',
        'float': {'value': 0.5, 'metrics': {'ap75': 0.4}},
        'rows': [
            {
                'method': method,
                'bits': 'w4a4',
                'seed': 0,
                'value': 0.1,
                'metrics': {'ap75': value},
                'scope': 'model',
            }
            for method, value in values.items()
        ],
    }


def test_relative_losses(tools):
    module = tools('taskptq.bench.loss_ratio')
    losses = module.relative_losses(
        results('a', mse=0.36, minmax=0.2, qdrop=0.39),
        results('b', mse=0.20, minmax=0.2, qdrop=0.38, gptq=0.3),
        metric='ap75',
    )
    by_method = {loss.method: loss for loss in losses}
    assert set(by_method) == {'mse', 'minmax', 'qdrop'}
    assert by_method['mse'].one == pytest.approx(0.1)
    assert by_method['mse'].ratio == pytest.approx(0.2)
    assert module.verdict(by_method['mse']) == 'yes'
    assert module.verdict(by_method['minmax']) == 'no'
    # The other model loses 5 %: bits do not discriminate.
    assert by_method['qdrop'].ratio is None
    assert module.verdict(by_method['qdrop']) == ''
    text = module.render_losses(losses, names=['grid', 'plain'])
    assert 'grid loses' in text


def entry(name, found):
    table = SimpleNamespace(
        path=name, model=f'x_{name}', columns={'AP 75': 'ap75'}
    )
    return SimpleNamespace(table=table, results=found)


def test_parameters_of_float_and_of_quantized_trainings(tools, tmp_path):
    from taskptq.engine.checkpoint_file import TRAINING_KEY

    module = tools('taskptq.cli.bench_training')
    weights = {
        'a.weight': torch.zeros(3, 2),
        'a.bias': torch.zeros(3),
        'bn.running_mean': torch.zeros(5),
    }
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': weights}, path)
    assert module.count_parameters(path) == 9
    weights['a.weight_quantizer.scale'] = torch.ones(3)
    torch.save(
        {'state_dict': 'elsewhere', TRAINING_KEY: {'weights': weights}}, path
    )
    assert module.count_parameters(path) == 9


def test_markers(tools, folder, tmp_path):
    module = tools('taskptq.bench.training_markers')
    write_rows(folder, row('plain', 0, 0.3))
    entries = {
        'one': entry('one', results('a', mse=0.36)),
        'two': entry('two', results('b', mse=0.2)),
        'none': entry('none', None),
    }
    text = ''.join(
        f'<!-- {marker} -->\nold\n<!-- /{marker.partition(":")[0]} -->\n'
        for marker in (
            'training:tiny',
            'training-targets:tiny',
            'losses:one two AP_75',
            'losses:none two AP_75',
        )
    )

    def update(value):
        return module.update_training_text(
            value, tmp_path, ('configs/*',), entries
        )

    new = update(text)
    assert 'old' not in new
    assert '| Smooth-L1' in new
    assert 'is not measured yet' in new
    assert '| w4a4 | mse' in new
    assert new.count('Not measured yet.') == 1
    assert update(new) == new
    for bad in (
        'training:other',
        'losses:one two Other',
        'losses:one two',
        'losses:one three AP_75',
    ):
        kind = bad.partition(':')[0]
        with pytest.raises(ValueError, match=r'there is|has no|give'):
            update(f'<!-- {bad} -->\n<!-- /{kind} -->')
