"""Reports and pictures of DETRs, on tiny random detectors."""

import copy
import importlib
import importlib.util
import json
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from taskptq.analysis.query_distribution import (
    QuerySample,
    describe_queries,
    entropy_of,
)
from taskptq.prepare import QConfig, prepare

KINDS = ('detr', 'conditional', 'dab', 'deformable', 'two-stage', 'dino')
MARKERS = """# Tiny

<!-- {0}:{0}_tiny -->
old
<!-- /{0} -->
end
"""


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


@pytest.fixture
def helper(repo_root):
    """Load a helper module of another test folder."""

    def load(name):
        folder = 'tiny_task' if name.startswith('tiny') else 'test_engine'
        path = repo_root / 'tests' / folder / f'{name}.py'
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def make(helper):
    """Build a tiny random detector of a kind."""
    from mmengine.registry import MODELS, DefaultScope

    module = helper('test_detr_adapters')

    def build(kind):
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(module.config_of(kind)).eval()

    return build


@pytest.fixture
def task(helper, tmp_path, monkeypatch, registry_guard):
    """Write config, checkpoint and table of a tiny DETR; return the table."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    tiny = helper('tiny_detr')
    monkeypatch.chdir(tmp_path)

    def write(kind):
        cfg = Config(tiny.config(getattr(tiny, kind)()))
        cfg.test_dataloader.batch_size = 1
        cfg.dump(f'{kind}.py')
        with DefaultScope.overwrite_default_scope('mmdet'):
            torch.manual_seed(0)
            model = MODELS.build(copy.deepcopy(cfg.model))
        # Embeddings of levels are bare memory before.
        model.init_weights()
        torch.save({'state_dict': model.state_dict()}, f'{kind}.pth')
        table = {
            'model': kind,
            'dataset': 'set',
            'config': f'{kind}.py',
            'checkpoint': f'{kind}.pth',
            'metric': 'mean',
            'columns': {'mean box': 'mean'},
            'calibration': {'num_images': 4, 'batch_size': 2},
            'reconstruction': {'steps': 2, 'batch_size': 2},
            'groups': [{'methods': ['mse'], 'bits': ['w4a4-8']}],
        }
        path = tmp_path / f'{kind}_set.table.yml'
        path.write_text(yaml.safe_dump(table))
        return path

    return write


def quantized_by(model, patterns):
    """Names of what a recipe with these ``keep_float`` quantizes."""
    qconfig = QConfig.from_dict({'keep_float': patterns})
    report = prepare(copy.deepcopy(model), qconfig)
    return {row.name for row in report.rows if row.status == 'quantized'}


@pytest.mark.parametrize('kind', KINDS)
def test_groups_partition_what_is_quantized(tools, make, kind):
    data = tools('taskptq.bench.detr_data')
    model = make(kind)
    names = data.quantized_names(model, QConfig.from_dict({}))
    assert quantized_by(model, []) == set(names)  # the model stayed float
    parts = data.partition(names)
    assert sorted(chain(*parts.values())) == sorted(names)
    assert set(parts) == set(data.GROUPS)
    for group, members in parts.items():
        alone = quantized_by(model, data.kept_without([group], parts))
        assert alone == set(members), group
    before = set()
    for title, groups in data.progressive_steps(parts):
        now = quantized_by(model, data.kept_without(groups, parts))
        assert before < now, title
        assert now == set(chain(*(parts[group] for group in groups)))
        before = now
    assert before == set(names)


def test_every_group_has_one_step(tools):
    data = tools('taskptq.bench.detr_data')
    groups = [group for step in data.STEPS.values() for group in step]
    assert sorted(groups) == sorted(data.GROUPS)


def test_parts_that_a_model_lacks_or_nobody_knows(tools):
    data = tools('taskptq.bench.detr_data')
    parts = data.partition(['backbone.conv1', 'bbox_head.fc_cls'])
    assert list(parts) == ['backbone', 'head and reference points']
    assert data.kept_without(['backbone'], parts) == ['bbox_head.*']
    steps = dict(data.progressive_steps(parts))
    assert list(steps) == ['backbone and neck', '+ decoder MLPs and head']
    with pytest.raises(ValueError, match='no neck'):
        data.patterns_of(['neck'], parts)
    with pytest.raises(ValueError, match='conv belongs to no group'):
        data.partition(['mask_head.conv'])


@pytest.mark.parametrize(
    ('kind', 'attention', 'name'),
    [
        ('detr', 'cross-attention', 'cross_attn.attn'),
        ('conditional', 'cross-attention', 'cross_attn'),
        ('dino', 'self-attention', 'self_attn.attn'),
    ],
)
def test_where_queries_meet_keys(tools, make, kind, attention, name):
    data = tools('taskptq.bench.detr_data')
    model = make(kind)
    with pytest.raises(ValueError, match='no query'):
        data.query_points(model)
    prepare(model, QConfig.from_dict({}))
    points = data.query_points(model)
    assert points == {
        f'{attention} {number}': (
            f'decoder.layers.{number}.{name}.query_quantizer'
        )
        for number in range(2)
    }
    with pytest.raises(ValueError, match='no decoder'):
        data.query_points(model.backbone)


def test_rows_of_a_table(tools, task):
    models = tools('taskptq.bench.row_models')
    table = tools('taskptq.bench.table').read_table(task('detr'))
    row = models.row_of(table, 'w4a4-8_mse')
    assert row in table.rows()
    other = models.row_of(table, 'w3a3-8_drd-centering', seed=2)
    assert other.recipe == 'w3a3-8_drd-centering'
    assert other.reconstruction == {'steps': 2, 'batch_size': 2}
    assert (other.bits, other.seed) == ('w3a3-8', 2)
    with pytest.raises(ValueError, match='<bits>_<method>'):
        models.row_of(table, 'w4a4-8')
    with pytest.raises(ValueError, match='published'):
        models.row_of(table, 'w4a4_published-eval')


def sample_of(values, *, step=None, num_bits=4):
    """Queries of heads, rounded to a step, or float without one."""
    if step is None:
        return QuerySample(values=values)
    steps = torch.as_tensor(step).reshape(-1)
    codes = (values / steps[:, None]).round()
    return QuerySample(
        values=codes * steps[:, None],
        codes=codes.to(torch.int64),
        steps=steps,
        num_bits=num_bits,
    )


def test_distributions_of_queries():
    values = torch.randn(2, 20000) * torch.tensor([[1.0], [2.0]])
    found = describe_queries(
        {
            'float': sample_of(values),
            'fine': sample_of(values, step=0.05, num_bits=8),
            'coarse': sample_of(values, step=1.0),
            'by head': sample_of(values, step=[1.0, 2.0]),
        }
    )
    edges = torch.tensor(found['edges'])
    stages = found['stages']
    for stage in stages.values():
        area = (torch.tensor(stage['density']) * edges.diff()).sum()
        assert float(area) == pytest.approx(1, abs=1e-6)
    fine, exact = (
        torch.tensor(stages[name]['density']) for name in ('fine', 'float')
    )
    # A step of a quarter of a bin: no beat between grid and bins.
    assert float((fine - exact).abs().max()) < 0.05 * float(exact.max())
    assert stages['float']['entropy'] is None
    assert stages['fine']['entropy'] > stages['coarse']['entropy']
    assert stages['float']['head_stds'] == pytest.approx([1, 2], rel=0.05)
    # A normal variable on a grid of its deviation: 2.1 bits, at any scale.
    assert stages['by head']['entropy'] == pytest.approx(2.1, abs=0.05)
    json.dumps(found, allow_nan=False)
    assert entropy_of(torch.zeros(5, dtype=torch.int64)) == 0
    with pytest.raises(ValueError, match='0 stages'):
        describe_queries({})


def report(tools, *words):
    """Run a report with a plot; returns the JSON and the PNG's path."""
    table, out = words[1], f'{words[0]}_tiny.json'
    tools('taskptq.cli.detr_report').main(
        [words[0], str(table), '--out', out, '--device', 'cpu', *words[2:]]
    )
    return json.loads(Path(out).read_text(encoding='utf-8'))


def shown(tools, root, kind, found):
    """Return a README with a marker, brought up to date by a report."""
    folder = root / 'configs' / 'tiny' / 'results'
    folder.mkdir(parents=True, exist_ok=True)
    markers = tools('taskptq.bench.detr_markers')
    text = MARKERS.format(kind)
    absent = markers.update_detr_text(text, root, ['configs/*'], {})
    assert absent == text.replace('old', 'Not measured yet.')
    path = folder / f'{kind}_tiny.json'
    path.write_text(json.dumps(found))
    done = markers.update_detr_text(text, root, ['configs/*'], {})
    assert done == markers.update_detr_text(done, root, ['configs/*'], {})
    path.write_text(json.dumps({**found, 'what': 'other'}))
    with pytest.raises(ValueError, match='other'):
        markers.update_detr_text(text, root, ['configs/*'], {})
    return done


def is_picture(path):
    import matplotlib.image

    return matplotlib.image.imread(path).std() > 0.02


def test_progressive_and_alignment(tools, task, tmp_path):
    table = task('detr')
    found = report(
        tools, 'progressive', table, '--bits', 'w4a4-8', '--plot', 'p.png'
    )
    assert [step['num_quantized'] for step in found['steps']] == [
        sum(found['modules'][group] for group in step['groups'])
        for step in found['steps']
    ]
    assert len(found['steps']) == 4
    assert found['steps'][-1]['keep_float'] == []
    assert found['absent'] == []
    values = [step['value'] for step in found['steps']]
    assert len({found['float']['value'], *values}) == 5
    assert found['command'].startswith(
        'python tools/detr_report.py progressive'
    )
    assert found['float']['sha256']
    assert is_picture('p.png')
    text = shown(tools, tmp_path, 'progressive', found)
    assert '+ decoder attention' in text
    assert 'At W4A4-8 by `mse`.' in text

    found = report(tools, 'alignment', table)
    assert len(found['quantizers']) == 4  # self and cross, two layers
    assert found['aligned']['value'] != found['float']['value']
    assert found['aligned']['lost'] == pytest.approx(
        found['float']['value'] - found['aligned']['value']
    )
    assert 'nothing rounded' in shown(tools, tmp_path, 'alignment', found)


def test_sensitivity(tools, task, tmp_path):
    found = report(
        tools,
        'sensitivity',
        task('dino'),
        '--bits',
        'w4a4-8',
        '--plot',
        's.png',
    )
    assert list(found['groups']) == list(
        tools('taskptq.bench.detr_data').GROUPS
    )
    assert {
        name: one['num_quantized'] for name, one in found['groups'].items()
    } == found['modules']
    assert all(one['lost'] != 0 for one in found['groups'].values())
    assert is_picture('s.png')
    text = shown(tools, tmp_path, 'sensitivity-ap', found)
    lines = [line for line in text.splitlines() if line.startswith('| ')][1:]
    losses = [float(line.split('|')[-2]) for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 8


@pytest.mark.parametrize(
    ('kind', 'attention'),
    [('detr', 'cross-attention'), ('dino', 'self-attention')],
)
def test_queries(tools, task, tmp_path, kind, attention):
    rows = (
        ['w4a4_mse', 'w4a4_qdrop']
        if kind == 'dino'
        else ['w4a4-8_mse', 'w4a4-8_da']
    )
    words = ['queries', task(kind), '--rows', *rows, '--images', '3']
    found = report(tools, *words, '--plot', 'q.png')
    assert found['num_images'] == 3
    assert list(found['layers']) == [f'{attention} 0', f'{attention} 1']
    assert [one['aligned'] for one in found['rows'].values()] == [
        False,
        kind == 'detr',
    ]
    for layer in found['layers'].values():
        assert list(layer['stages']) == ['float', *rows]
        counts = {one['count'] for one in layer['stages'].values()}
        assert counts == {3 * 6 * 16}  # images, queries, channels
        for row in rows:
            stage = layer['stages'][row]
            assert stage['num_bits'] == (4 if kind == 'dino' else 8)
            assert 0 < stage['entropy'] <= stage['num_bits']
            assert stage['num_codes'] <= 2 ** stage['num_bits']
    assert is_picture('q.png')
    again = report(tools, *words, '--reuse')
    assert again['layers'] == found['layers']
    text = shown(tools, tmp_path, 'queries', found)
    assert f'{attention} 1' in text
    assert 'On 3 evaluated images.' in text


def test_boxes_are_drawn(tools, task, monkeypatch):
    import numpy as np

    draw = tools('taskptq.cli.draw_boxes')
    table = task('detr')

    def picture(batch):
        truth = batch['data_samples'][0].gt_instances
        return (
            np.full((32, 48, 3), 255, dtype=np.uint8),
            truth.bboxes,
            truth.labels,
        )

    # These images lie in no file.
    monkeypatch.setattr(draw, 'picture_of', picture)
    words = [str(table), '--rows', 'w4a4-8_mse', '--device', 'cpu']
    draw.main([*words, '--boxes', 'b.png', '--score', '0', '--images', '2'])
    assert is_picture('b.png')
    draw.main(
        [
            *words,
            '--boxes',
            'none.png',
            '--score',
            '1',
            '--images',
            '2',
            '--reuse',
        ]
    )
    import matplotlib.image

    with_boxes, without = (
        matplotlib.image.imread(name) for name in ('b.png', 'none.png')
    )
    assert with_boxes.shape == without.shape
    assert (with_boxes < 0.9).sum() > (without < 0.9).sum()
    with pytest.raises(SystemExit, match='--images 99: give 1 to 4'):
        draw.main([*words, '--boxes', 'c.png', '--images', '99'])


def test_impossible_arguments_are_one_sentence(tools, task):
    main = tools('taskptq.cli.detr_report').main
    table = str(task('detr'))
    with pytest.raises(SystemExit, match='there is no table'):
        main(['alignment', 'absent.table.yml', '--out', 'a.json'])
    with pytest.raises(SystemExit, match='bits of weight have to be 2 to 8'):
        main(
            [
                'progressive',
                table,
                '--bits',
                'w9a9',
                '--out',
                'a.json',
                '--device',
                'cpu',
            ]
        )
