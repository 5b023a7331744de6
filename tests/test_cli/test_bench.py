import dataclasses
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('mmengine')

ROW_KEYS = {
    'method',
    'bits',
    'seed',
    'recipe',
    'value',
    'metrics',
    'calibration_seconds',
    'reconstruction_seconds',
    'eval_seconds',
    'file_bytes',
    'checkpoint',
    'command',
    'commit',
    'steps',
    'scope',
    'decided',
    'turned',
}
GROUPS = [
    {'methods': ['qdrop'], 'bits': ['w2a4'], 'seeds': [0, 1]},
    {'methods': ['minmax', 'mse'], 'bits': ['w8a8', 'w2a4']},
]
NAMES = [
    'qdrop w2a4 0',
    'qdrop w2a4 1',
    'minmax w8a8 0',
    'mse w8a8 0',
    'minmax w2a4 0',
    'mse w2a4 0',
]


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


@pytest.fixture
def write_table(tmp_path):
    """Write a table with its float checkpoint; returns the path."""

    def write(**changes):
        checkpoint = tmp_path / 'float.pth'
        if not checkpoint.exists():
            checkpoint.write_bytes(b'float weights')
        content = {
            'model': 'tiny',
            'dataset': 'set',
            'config': 'tiny.py',
            'checkpoint': str(checkpoint),
            'metric': 'coco/bbox_mAP',
            'groups': GROUPS,
            **changes,
        }
        path = tmp_path / 'tiny_set.table.yml'
        path.write_text(yaml.safe_dump(content))
        return path

    return write


class FakeMeasurement:
    """Measures nothing; counts, and stops at a chosen row."""

    measured: list = []  # noqa: RUF012
    stop_at = None
    fail_at = None

    def __init__(self, table, *, device=None):
        self.table = table
        self.work_dir = Path(table.checkpoint).parent / 'work'

    def environment(self):
        return {'python': '3'}

    def measure_float(self):
        self.measured.append('float')
        return {
            'config': 'tiny.py',
            'checkpoint': 'float.pth',
            'value': 0.5,
            'metrics': {'coco/bbox_mAP': 0.5},
        }

    def measure(self, row):
        if row.name == self.stop_at:
            raise KeyboardInterrupt
        if row.name == self.fail_at:
            raise ValueError('impossible')
        self.measured.append(row.name)
        return {
            'method': row.method,
            'bits': row.bits,
            'seed': row.seed,
            'value': 0.4,
            'metrics': {},
            'calibration_seconds': 1.0,
            'reconstruction_seconds': 0.0,
            'eval_seconds': 1.0,
            'file_bytes': 1,
            'steps': row.reconstruction.get('steps'),
        }


@pytest.fixture
def fake(tools, monkeypatch):
    """run_table with a measurement that measures nothing."""
    run_table = tools('taskptq.cli.bench')
    kind = type('Fake', (FakeMeasurement,), {'measured': []})
    monkeypatch.setattr(run_table, 'Measurement', kind)
    run_table.Fake = kind
    return run_table


def read_results(table):
    return json.loads((table.parent / 'results' / 'tiny_set.json').read_text())


def test_measures_in_the_tables_order(fake, write_table):
    table = write_table()
    fake.main([str(table)])
    assert fake.Fake.measured == ['float', *NAMES]
    results = read_results(table)
    assert list(results)[:4] == ['model', 'dataset', 'split', 'metric']
    assert results['split'] == 'test'
    assert results['environment'] == {'python': '3'}
    assert len(results['rows']) == len(NAMES)


def test_measures_only_what_is_lacking(fake, write_table):
    table = write_table()
    fake.main([str(table), '--rows', '^minmax'])
    assert fake.Fake.measured == ['float', 'minmax w8a8 0', 'minmax w2a4 0']
    fake.main([str(table)])
    assert sorted(fake.Fake.measured) == sorted(['float', *NAMES])
    names = [
        f'{r["method"]} {r["bits"]} {r["seed"]}'
        for r in read_results(table)['rows']
    ]
    assert names == NAMES
    before = list(fake.Fake.measured)
    fake.main([str(table)])
    assert fake.Fake.measured == before


def test_an_interrupted_table_goes_on(fake, write_table):
    table = write_table()
    fake.Fake.stop_at = 'minmax w8a8 0'
    with pytest.raises(KeyboardInterrupt):
        fake.main([str(table)])
    assert len(read_results(table)['rows']) == 2
    fake.Fake.stop_at = None
    fake.main([str(table)])
    assert fake.Fake.measured == ['float', *NAMES]


def test_a_failing_row_does_not_stop_the_others(fake, write_table, caplog):
    table = write_table()
    fake.Fake.fail_at = 'qdrop w2a4 1'
    with pytest.raises(SystemExit, match='qdrop w2a4 1'):
        fake.main([str(table)])
    assert len(read_results(table)['rows']) == len(NAMES) - 1
    assert 'impossible' in caplog.text


def test_redo_replaces_a_row(fake, write_table):
    table = write_table()
    fake.main([str(table)])
    fake.main([str(table), '--rows', '^mse w8a8', '--redo'])
    assert fake.Fake.measured == ['float', *NAMES, 'mse w8a8 0']
    assert len(read_results(table)['rows']) == len(NAMES)


def test_keeps_what_another_process_measured_meanwhile(
    fake, write_table, monkeypatch
):
    table = write_table()
    rows = fake.Fake.measure

    def measure(self, row):
        monkeypatch.setattr(fake.Fake, 'measure', rows)
        fake.main([str(table), '--rows', 'mse w8a8'])  # the other one
        return rows(self, row)

    monkeypatch.setattr(fake.Fake, 'measure', measure)
    fake.main([str(table)])
    assert fake.Fake.measured.count('mse w8a8 0') == 1
    assert sorted(fake.Fake.measured) == sorted(['float', *NAMES])
    found = [
        f'{r["method"]} {r["bits"]} {r["seed"]}'
        for r in read_results(table)['rows']
    ]
    assert found == NAMES


def test_leaves_a_row_that_another_process_is_at(fake, write_table, tools):
    table = write_table()
    row = tools('taskptq.bench.table').read_table(table).rows('mse w8a8')[0]
    with fake.row_lock(table.parent / 'work', row):
        fake.main([str(table)])
    assert 'mse w8a8 0' not in fake.Fake.measured
    assert len(read_results(table)['rows']) == len(NAMES) - 1
    fake.main([str(table)])
    assert fake.Fake.measured[-1] == 'mse w8a8 0'


def test_out_of_time_starts_no_row(fake, write_table):
    table = write_table()
    fake.main([str(table), '--max-minutes', '0'])
    assert fake.Fake.measured == ['float']
    assert read_results(table)['rows'] == []


def test_list_measures_nothing(fake, write_table, capsys):
    table = write_table()
    fake.main([str(table), '--list', '--rows', 'w8a8'])
    assert fake.Fake.measured == []
    assert re.findall(r'(\S+) w8a8 0 +lacking', capsys.readouterr().out) == [
        'minmax',
        'mse',
    ]


def test_refuses_results_of_another_checkpoint(fake, write_table):
    table = write_table()
    fake.main([str(table)])
    path = table.parent / 'results' / 'tiny_set.json'
    results = json.loads(path.read_text())
    results['float']['sha256'] = 'other'
    path.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match='another'):
        fake.main([str(table)])


def test_stores_the_targets(fake, write_table):
    table = write_table(
        targets=[
            {
                'name': 'keeps',
                'method': 'mse',
                'bits': 'w8a8',
                'min_share_of_float': 0.9,
            }
        ]
    )
    fake.main([str(table)])
    (target,) = read_results(table)['targets']
    assert target['status'] == 'fail'
    assert target['measured'] == pytest.approx(0.8)
    assert target['short_by'] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'modle': 1}, 'unknown key'),
        ({'groups': [{'methods': ['mse'], 'bit': 'w8a8'}]}, r'groups\[0\]'),
        ({'groups': [{'methods': ['mse']}]}, "lacks the key 'bits'"),
        ({'split': 'train'}, 'split'),
        ({'dataset': 'other'}, 'name it'),
    ],
)
def test_refuses_a_wrong_table(tools, write_table, changes, message):
    with pytest.raises(ValueError, match=message):
        tools('taskptq.bench.table').read_table(write_table(**changes))


def test_the_first_group_decides_a_rows_settings(tools, write_table):
    table = tools('taskptq.bench.table').read_table(
        write_table(
            reconstruction={'steps': 7, 'batch_size': 2},
            groups=[
                {
                    'methods': 'qdrop',
                    'bits': 'w2a4',
                    'reconstruction': {'steps': 9},
                },
                {'methods': ['qdrop'], 'bits': ['w2a4', 'w4a4']},
            ],
        )
    )
    first, second = table.rows()
    assert (first.name, second.name) == ('qdrop w2a4 0', 'qdrop w4a4 0')
    assert first.reconstruction == {'steps': 9, 'batch_size': 2}
    assert second.reconstruction == {'steps': 7, 'batch_size': 2}


def test_the_command_names_just_its_row(tools, write_table):
    table = tools('taskptq.bench.table').read_table(
        write_table(
            groups=[
                {
                    'methods': ['fqm', 'fqm+drd'],
                    'bits': ['w4a4', 'w4a4-8'],
                    'seeds': [1, 11],
                }
            ]
        )
    )
    for row in table.rows():
        words = shlex.split(table.command(row))
        found = table.rows(words[words.index('--rows') + 1])
        assert [other.name for other in found] == [row.name]


def test_no_metric_counts_as_zero(tools, write_table):
    measure = tools('taskptq.bench.measurement')
    measurement = object.__new__(measure.Measurement)
    measurement.table = tools('taskptq.bench.table').read_table(write_table())
    scores = measurement.scores({})
    assert (scores['value'], scores['metrics']) == (0.0, {})
    assert 'note' in scores
    with pytest.raises(ValueError, match='coco/bbox_mAP'):
        measurement.scores({'coco/segm_mAP': 0.1})


def test_metrics_are_finite_numbers(tools):
    found = tools('taskptq.bench.measurement').finite_numbers(
        {'a': torch.tensor(0.5).numpy(), 'b': float('nan'), 'c': '0.1 0.2'}
    )
    assert found == {'a': 0.5}


def test_collects_iou_of_each_class(tools):
    pytest.importorskip('mmseg')
    from mmengine.evaluator import Evaluator
    from mmseg.evaluation import IoUMetric

    evaluator = Evaluator(IoUMetric(iou_metrics=['mIoU']))
    evaluator.dataset_meta = {'classes': ('sky', 'road')}
    found = tools('taskptq.bench.measurement').watch_classes(evaluator)
    predicted = torch.tensor([[0, 0], [1, 1]])
    label = torch.tensor([[0, 1], [1, 1]])
    evaluator.process(
        data_samples=[
            {
                'pred_sem_seg': {'data': predicted},
                'gt_sem_seg': {'data': label},
            }
        ]
    )
    metrics = evaluator.evaluate(1)
    assert found == {'IoU/sky': 50.0, 'IoU/road': 66.67}
    assert metrics['mIoU'] == pytest.approx(58.33)


def test_replay_gives_copies(tools):
    replay = tools('taskptq.bench.measurement').Replay([{'x': torch.zeros(2)}])
    replay[0]['x'].add_(1)
    assert next(iter(replay))['x'].sum() == 0
    assert len(replay) == 1


@pytest.fixture
def tiny_task(repo_root, registry_guard, monkeypatch, tmp_path):
    """Folder of the tiny task; the current folder is empty."""
    from mmengine.registry import DefaultScope

    folder = repo_root / 'tests' / 'tiny_task'
    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop('tiny_task', None)
    yield folder
    sys.modules.pop('tiny_task', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.mark.parametrize(
    ('method', 'recipe', 'published'),
    [
        ('qdrop', 'w4a4_qdrop', False),
        ('published-eval', 'w4a4_qdrop', True),
        ('ptq4sam-l+published-eval', 'w4a4_ptq4sam-l', True),
    ],
)
def test_published_evaluation_uses_the_methods_recipe(
    tools, write_table, method, recipe, published
):
    table = tools('taskptq.bench.table').read_table(
        write_table(groups=[{'methods': method, 'bits': 'w4a4'}])
    )
    (row,) = table.rows()
    assert (row.recipe, row.method) == (recipe, method)
    assert row.published == published


@pytest.mark.parametrize(
    ('recipes', 'expected'),
    [(None, 'w4a4_centering-agq'), ('sam', 'sam::w4a4_centering-agq')],
)
def test_recipes_of_a_project_count_first(
    tools, write_table, recipes, expected
):
    table = tools('taskptq.bench.table').read_table(
        write_table(
            recipes=recipes,
            groups=[{'methods': 'centering+agq', 'bits': 'w4a4'}],
        )
    )
    assert table.rows()[0].recipe == expected
    row_of = tools('taskptq.bench.row_models').row_of
    for name in ('w4a4_centering-agq', 'w4a4_centering+agq'):
        assert row_of(table, name, seed=7).recipe == expected


@pytest.mark.filterwarnings('ignore')
def test_an_unknown_recipe_is_refused_before_the_work(
    tools, write_table, tiny_task
):
    table = write_table(
        config=str(tiny_task / 'tiny_config.py'),
        groups=[{'methods': ['mse', 'qdorp'], 'bits': 'w4a4'}],
    )
    with pytest.raises(SystemExit, match='the nearest are qdrop'):
        tools('taskptq.cli.bench').main([str(table), '--device', 'cpu'])


def test_what_a_recipe_sets_reaches_its_row(tools):
    measurement = tools('taskptq.bench.measurement')
    row = tools('taskptq.bench.table').Row(
        method='drd',
        bits='w4a4-8',
        seed=3,
        recipe='w4a4-8_drd-centering',
        rewrites=[{'type': 'CrossLayerEqualization'}],
        reconstruction={'steps': 7, 'loss': {'tau': 0.5}},
        qconfig={'weight': {'num_bits': 5}},
    )
    images = tools('taskptq.engine.calibration_config').CalibrationConfig()
    found = measurement.read_recipe(row, images=images)
    plain = tools('taskptq.recipes').resolve(row.recipe)
    assert found.reconstruction['steps'] == 7
    assert found.loss == {**plain['reconstruction']['loss'], 'tau': 0.5}
    assert found.qconfig.points['weight']['num_bits'] == 5
    assert found.qconfig.points['key']['num_bits'] == 8
    assert found.qconfig.to_dict()['overrides']
    assert found.rewrites == [*row.rewrites, *plain['rewrites']]
    # A method without a reconstruction is given none.
    row = dataclasses.replace(row, recipe='w4a4-8_mse')
    found = measurement.read_recipe(row, images=images)
    assert found.reconstruction is None
    row = dataclasses.replace(row, recipe='w4a4-8_drd-qat')
    with pytest.raises(ValueError, match='sets distillation, which a table'):
        measurement.read_recipe(row, images=images)


def test_a_missing_checkpoint_says_how_to_make_it(tools, write_table):
    runner = tools('taskptq.bench.float_runner')
    table = write_table(checkpoint='none.pth', prepare='make none.pth')
    with pytest.raises(FileNotFoundError, match=r'`make none\.pth` makes it'):
        runner.checkpoint_file(tools('taskptq.bench.table').read_table(table))


def test_placed_leaves_everything_else(tools, tmp_path):
    setting = {'out': '{work_dir}/a.json', 'several': [1, {'b': '{x}'}]}
    assert tools('taskptq.bench.float_runner').placed(setting, tmp_path) == {
        **setting,
        'out': f'{tmp_path}/a.json',
    }


GROUNDS = """
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TinyDataset',
        first=500,
        length=6,
        test_mode=True,
        pipeline=[dict(type='TinyLoad'), dict(type='TinyPack')]))
reference_evaluator = dict(type='WriteMean', out='{work_dir}/mean.txt')
test_evaluator = [
    dict(type='DistanceToMean', file='{work_dir}/mean.txt'),
    dict(type='TinyMetric'),
]
"""


def register_reference_metrics():
    """One writes a file, the other cannot be built without it."""
    from mmengine.registry import METRICS

    base = METRICS.get('TinyMetric')

    @METRICS.register_module()
    class WriteMean(base):
        def __init__(self, *, out):
            super().__init__()
            self.out = Path(out)

        def compute_metrics(self, results):
            assert len(results) == 6
            mean = super().compute_metrics(results)['mean']
            self.out.write_text(repr(mean))
            return {}

    @METRICS.register_module()
    class DistanceToMean(base):
        def __init__(self, *, file):
            super().__init__()
            self.mean = float(Path(file).read_text())

        def compute_metrics(self, results):
            mean = super().compute_metrics(results)['mean']
            return {'distance': abs(mean - self.mean)}


@pytest.mark.filterwarnings('ignore')
def test_grounds_replace_what_is_measured(
    tools, write_table, tiny_task, tmp_path
):
    from mmengine.config import Config

    from taskptq.apis import build_model

    config = tiny_task / 'tiny_config.py'
    torch.manual_seed(3)
    model = build_model(Config.fromfile(config))
    register_reference_metrics()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    (tmp_path / 'grounds.py').write_text(GROUNDS)
    table = write_table(
        config=str(config),
        metric='mean',
        grounds='grounds.py',
        calibration={'num_images': 8},
        groups=[{'methods': 'minmax', 'bits': 'w2a4'}],
    )
    tools('taskptq.cli.bench').main([str(table), '--device', 'cpu'])
    results = read_results(table)
    assert results['float']['metrics']['distance'] == 0
    (row,) = results['rows']
    distance = abs(row['value'] - results['float']['value'])
    assert row['metrics']['distance'] == pytest.approx(distance)
    assert distance > 0


@pytest.mark.filterwarnings('ignore')
def test_rows_equal_what_quantize_and_test_give(
    tools, write_table, tiny_task, tmp_path
):
    from mmengine.config import Config

    from taskptq.apis import build_model, quantize

    config = tiny_task / 'tiny_config.py'
    torch.manual_seed(3)
    model = build_model(Config.fromfile(config))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    table_steps = {'steps': 3, 'batch_size': 4}
    table = write_table(
        config=str(config),
        metric='mean',
        calibration={'num_images': 8},
        reconstruction=table_steps,
        groups=[
            {
                'methods': ['qdrop', 'gptq', 'minmax', 'published-eval'],
                'bits': ['w4a4'],
                'seeds': [1],
            }
        ],
    )
    tools('taskptq.cli.bench').main([str(table), '--device', 'cpu'])
    results = read_results(table)
    assert set(results['rows'][0]) >= ROW_KEYS
    quantized, report = quantize(
        config,
        tmp_path / 'float.pth',
        device='cpu',
        seed=1,
        recipe=['w4a4_qdrop', {'reconstruction': table_steps}],
        calibration={'num_images': 8},
        work_dir=tmp_path / 'api',
    )
    by_method = {row['method']: row for row in results['rows']}
    row = by_method['qdrop']
    # The notes in a file, some of them paths, are compressed.
    assert row['file_bytes'] == pytest.approx(report['file_bytes'], rel=0.03)
    assert (row['steps'], by_method['minmax']['steps']) == (3, None)
    assert 0 <= row['decided'] <= 1
    measurement = tools('taskptq.bench.measurement').Measurement(
        tools('taskptq.bench.table').read_table(table), device='cpu'
    )
    metrics, _ = measurement.evaluate(quantized)
    assert metrics['mean'] == row['value'] != results['float']['value']
    assert row['value'] != by_method['minmax']['value']
    published = by_method['published-eval']
    assert published['recipe'] == row['recipe'] == 'w4a4_qdrop'
    assert 'drop at random' in published['note']
    assert (published['file_bytes'], published['checkpoint']) == (None, None)
    assert published['value'] != row['value']
    assert not list((tmp_path / 'work_dirs').rglob('*.pth'))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('commit', 'shared'), [('a' * 40, True), ('a' * 40 + '-dirty', False)]
)
def test_rows_share_blocks_of_one_commit(
    tools,
    write_table,
    tiny_task,
    tmp_path,
    monkeypatch,
    commit,
    shared,
):
    from mmengine.config import Config

    from taskptq.apis import build_model

    config = tiny_task / 'tiny_config.py'
    model = build_model(Config.fromfile(config))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    folders = tools('taskptq.recipes.folders')
    monkeypatch.setattr(folders, '_FOLDERS', dict(folders._FOLDERS))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'twin.py').write_text("base = 'qdrop'\n")
    folders.register_folder(tmp_path / 'own')
    table = write_table(
        config=str(config),
        metric='mean',
        recipes='own',
        calibration={'num_images': 8},
        reconstruction={'steps': 3, 'batch_size': 4},
        groups=[{'methods': ['qdrop', 'twin'], 'bits': 'w4a4'}],
    )
    run_table = tools('taskptq.cli.bench')
    monkeypatch.setattr(
        tools('taskptq.bench.measurement'), 'current_commit', lambda: commit
    )
    run_table.main([str(table), '--device', 'cpu'])
    first, second = read_results(table)['rows']
    assert first['value'] == second['value']
    assert 'note' not in first
    assert ('row with the same blocks' in second.get('note', '')) == shared
    folder = tmp_path / 'work_dirs/tables/tiny_set_test/blocks'
    assert folder.exists() == shared
    assert second['reconstruction_seconds'] > 0


def test_rows_tell_the_loss_around_steps_on_the_network(tools):
    note = tools('taskptq.bench.row_notes').set_loss_note
    block = {'name': 'layer', 'set_loss_start': None}
    whole = {
        'name': '',
        'set_loss_start': 0.3,
        'set_loss_end': 0.2,
        'taken_back': False,
    }
    assert note({'units': [block, whole]}) == {
        'network_set_loss': {'start': 0.3, 'end': 0.2, 'taken_back': False}
    }
    assert note({'units': [block]}) == note({}) == {}
