"""Reports and pictures of grid heads, on shrunk detectors and noise."""

import copy
import importlib
import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

FASTER = 'faster-rcnn_r18-half_{}_nuclei'
FCOS = 'fcos_r18-half_{}_nuclei'


@pytest.fixture
def pictures(repo_root):
    """The script, by its path: other projects have one of the same name."""
    spec = importlib.util.spec_from_file_location(
        'small_objects_make_pictures',
        repo_root / 'projects/small_objects/make_pictures.py',
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


@pytest.fixture
def small(repo_root):
    """The helper module of the small detectors."""
    spec = importlib.util.spec_from_file_location(
        'grid_configs', repo_root / 'tests' / 'grid_configs.py'
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules['grid_configs'] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        (FASTER.format('grid'), {'rpn_box', 'box'}),
        (FCOS.format('grid'), {'1'}),
    ],
)
def test_foreground_of_each_head(tools, small, name, heads):
    data = tools('small_objects.grid_data')
    model = small.build(name).eval()
    batches = [small.noise_batch()]
    found = data.foreground_logits(model, batches, threshold=-1.0)
    assert set(found) == heads
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if key.endswith('_reg.weight'):
                parameter.mul_(1.5)
    changed = data.foreground_logits(
        model, batches, threshold=-1.0, quant_model=other
    )
    for head, one in found.items():
        assert one.changed is None
        assert one.logits.shape[1:] == (4, one.grid.num_points)
        assert changed[head].logits.shape == changed[head].changed.shape
        assert not torch.equal(changed[head].logits, changed[head].changed)
        values = one.grid.expectation(one.logits)
        boxes = one.decode(values)
        assert boxes.shape == values.shape
        assert bool((boxes[:, 2:] >= boxes[:, :2]).all())
    with pytest.raises(ValueError, match='no place'):
        data.foreground_logits(model, batches, threshold=1.0)


def test_sides_are_decoded_around_their_point(tools):
    data = tools('small_objects.grid_data')
    points = torch.tensor([[10.0, 20.0, 4.0]])
    boxes = data.decode_sides(points, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert boxes.tolist() == [[6.0, 12.0, 22.0, 36.0]]


@torch.no_grad()
def test_decoded_boxes_are_those_of_the_detector(tools, small):
    data = tools('small_objects.grid_data')
    model = small.build(FCOS.format('grid')).eval()
    batch = small.noise_batch(count=1)
    head = model.bbox_head
    found = data.foreground_logits(model, [batch], threshold=-1.0)['1']
    boxes = found.decode(found.grid.expectation(found.logits))
    inputs = model.data_preprocessor(copy.deepcopy(batch), False)
    outputs = head(model.extract_feat(inputs['inputs']))
    config = copy.deepcopy(head.test_cfg)
    config.update(score_thr=0.0, nms_pre=1000)
    raw = head.predict_by_feat(
        *outputs,
        batch_img_metas=[
            {**one.metainfo, 'img_shape': (10**4, 10**4)}
            for one in inputs['data_samples']
        ],
        cfg=config,
        with_nms=False,
    )[0].bboxes
    # mmdet cuts at the image's border.
    torch.testing.assert_close(
        boxes.clamp(min=0).sort(dim=0).values, raw.sort(dim=0).values
    )


@pytest.mark.parametrize(
    'name',
    [
        FASTER.format('plain'),
        FASTER.format('grid'),
        FCOS.format('plain'),
        FCOS.format('grid-um'),
    ],
)
def test_gradients_of_small_boxes(tools, small, name):
    data = tools('small_objects.grid_data')
    model = small.build(name)
    found = data.gradient_variances(
        model, iter([small.noise_batch(), small.noise_batch(seed=1)])
    )
    json.dumps(found, allow_nan=False)
    layers = (
        {'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'}
        if 'faster' in name
        else {'bbox_head.conv_reg'}
    )
    assert set(found) == layers
    for groups in found.values():
        assert groups['small']['count'] > 0
        assert groups['small']['variance'] > 0
        assert 0 <= groups['small']['relative_variance'] <= 1
        # Squares of 8 to 17 px; regions may be larger.
        assert groups['large']['count'] == 0 or 'faster' in name
    assert not model.training


def test_size_of_the_object_at_a_point(tools):
    data = tools('small_objects.grid_data')
    boxes = torch.tensor(
        [[0.0, 0, 20, 20], [4.0, 4, 8, 8], [40.0, 40, 50, 50]]
    )
    centers = torch.tensor([[6.0, 6], [15.0, 15], [39.0, 39]])
    assert data.sizes_at(centers, boxes).tolist() == [4.0, 20.0, 10.0]
    assert math.isinf(data.sizes_at(centers, boxes[:0])[0])
    rois = torch.tensor([[0.0, 1, 1, 10, 17]])
    assert data.region_sizes(rois).tolist() == [[12.0]]


def test_reports(tools, small, monkeypatch, tmp_path):
    report = tools('make_report')
    model = small.build(FCOS.format('grid')).eval()
    monkeypatch.setattr(report, 'load_float', lambda *_: (None, model))
    monkeypatch.setattr(
        report, 'training_batches', lambda *_, **__: [small.noise_batch()]
    )
    monkeypatch.setattr(
        report, 'training_data', lambda *_, **__: iter([small.noise_batch()])
    )
    monkeypatch.setattr(report, 'current_commit', lambda: 'abc')
    quant = copy.deepcopy(model)
    with torch.no_grad():
        quant.bbox_head.conv_reg.weight.mul_(1.1)
    monkeypatch.setattr(report, 'quantize', lambda *_, **__: (quant, {}))
    out = {
        what: tmp_path / f'{what}.json'
        for what in ('errors', 'grids', 'gradients')
    }
    common = ['config.py', 'model.pth', '--threshold', '0']
    report.main(
        [
            'errors',
            *common,
            '--out',
            str(out['errors']),
            '--plot',
            str(tmp_path / 'scatter.png'),
            '--recipes',
            'w4a4_head-mse',
            '--bits',
            '8',
            '4',
        ]
    )
    errors = json.loads(out['errors'].read_text())
    head = errors['heads']['1']
    assert set(head['rounded']) == set(head['boxes']) == {'8', '4'}
    assert head['rounded']['8']['ratio'] == pytest.approx(1, abs=0.2)
    assert set(head['layers']) == {'w4a4_head-mse'}
    assert (tmp_path / 'scatter.png').stat().st_size > 1000
    report.main(['grids', *common, '--out', str(out['grids'])])
    grids = json.loads(out['grids'].read_text())['heads']['1']
    totals = [one['total'] for one in grids['best']]
    assert totals == sorted(totals)
    assert 1 <= grids['rank'] <= grids['candidates']
    assert grids['used']['alpha'] == 8.0
    report.main(
        [
            'gradients',
            'a.py',
            'a.pth',
            'b.py',
            'b.pth',
            '--out',
            str(out['gradients']),
        ]
    )
    models = json.loads(out['gradients'].read_text())['models']
    ratios = models[1]['first_over_this']['bbox_head.conv_reg']['small']
    # The same model under the same seed.
    assert ratios['variance'] == pytest.approx(1)
    report.main(
        [
            'cost',
            'a.py',
            'a.pth',
            'b.py',
            'b.pth',
            '--repeats',
            '3',
            '--out',
            str(tmp_path / 'cost.json'),
        ]
    )
    cost = json.loads((tmp_path / 'cost.json').read_text())
    assert cost['models'][0]['ratio'] == 1
    # The same model twice.
    assert 0.3 < cost['models'][1]['ratio'] < 3
    with pytest.raises(SystemExit, match='pairs'):
        report.main(['gradients', 'a.py', '--out', str(out['gradients'])])
    markers = tools('small_objects.markers')
    text = (
        markers.render_errors(errors)
        + markers.render_choice(json.loads(out['grids'].read_text()))
        + markers.render_gradients(json.loads(out['gradients'].read_text()))
        + (markers.render_cost(cost))
    )
    assert 'w4a4_head-mse' in text


def predictions(found):
    """Boxes and scores of the first image."""
    one = found[0].pred_instances
    return one.bboxes, one.scores


@torch.no_grad()
@pytest.mark.parametrize(
    'name',
    [
        FASTER.format('plain'),
        FASTER.format('grid'),
        FCOS.format('plain'),
        FCOS.format('grid'),
    ],
)
def test_mixture_has_scores_of_one_and_boxes_of_the_other(tools, small, name):
    mixed = tools('small_objects.mixed_detector').MixedDetector
    model = small.build(name).eval()
    # With scales of its layers that an untrained head lacks.
    for key, parameter in model.named_parameters():
        if key.endswith('_reg.weight'):
            parameter.normal_(std=0.1)
    other = copy.deepcopy(model)
    for key, parameter in other.named_parameters():
        if key.endswith('_reg.weight'):
            parameter.mul_(-1)
    one, two = (
        predictions(x.test_step(small.noise_batch())) for x in (model, other)
    )
    assert not torch.equal(one[0], two[0])
    twin = copy.deepcopy(model)
    for scores, boxes, wanted in (
        (twin, model, one),
        (model, other, two),
        (other, model, one),
    ):
        found = predictions(
            mixed(scores, boxes).test_step(small.noise_batch())
        )
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
    # A change of scores comes from the first copy alone.
    for key, parameter in other.named_parameters():
        if key.endswith(('fc_cls.bias', 'conv_cls.bias')):
            parameter[0].sub_(1)
    changed = predictions(mixed(other, model).test_step(small.noise_batch()))
    assert changed[1].max() < one[1].max()
    same = predictions(mixed(model, other).test_step(small.noise_batch()))
    torch.testing.assert_close(same[1], two[1])


def test_mixture_refuses_what_has_no_branches(tools, small):
    mixed = tools('small_objects.mixed_detector').MixedDetector
    model = small.build(FASTER.format('plain'))
    model.roi_head.bbox_head = torch.nn.ModuleList([model.roi_head.bbox_head])
    with pytest.raises(ValueError, match='no single bbox_head'):
        mixed(model, model)


def test_branches_report(tools, small, monkeypatch, tmp_path):
    report = tools('make_report')
    plain, quant = object(), object()
    table = SimpleNamespace(
        name='small_nuclei',
        config='a.py',
        checkpoint='a.pth',
        columns={'AP75': 'coco/bbox_mAP_75', 'AP large': 'absent'},
    )
    monkeypatch.setattr(report, 'read_table', lambda _: table)
    monkeypatch.setattr(
        report,
        'open_measurement',
        lambda _: SimpleNamespace(table=table, model=plain),
    )
    monkeypatch.setattr(report, 'row_of', lambda _, name, seed: (name, seed))
    monkeypatch.setattr(report, 'quantized_copy', lambda *_: quant)
    monkeypatch.setattr(
        report, 'MixedDetector', lambda scores, boxes: (scores, boxes)
    )
    known = {plain: 0.4, quant: 0.1, (quant, plain): 0.2, (plain, quant): 0.3}
    monkeypatch.setattr(
        report,
        'evaluate',
        lambda _, model, seed: {'metrics': {'coco/bbox_mAP_75': known[model]}},
    )
    out = tmp_path / 'branches.json'
    report.main(
        ['branches', 'a.table.yml', '--rows', 'w4a4_mse', '--out', str(out)]
    )
    found = json.loads(out.read_text())['models'][0]
    assert found['float']['AP75'] == 0.4
    row = found['rows'][0]
    assert [row[key]['AP75'] for key in ('quantized', 'scores', 'boxes')] == [
        0.1,
        0.2,
        0.3,
    ]
    text = tools('small_objects.markers').render_branches(
        json.loads(out.read_text())
    )
    lines = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in text.splitlines()
    ]
    assert lines[2] == ['small', 'float', '', '0.400', '']
    assert lines[-1] == ['small', 'w4a4 mse', 'boxes', '0.300', '']


def test_pictures(small, tmp_path, pictures):
    import matplotlib.image
    import mmcv

    name = FASTER.format('grid')
    models = {
        'float': small.build(name).eval(),
        'other': small.build(name, seed=1).eval(),
    }
    batch = small.noise_batch(count=1)
    path = tmp_path / 'image.png'
    mmcv.imwrite(batch['inputs'][0].permute(1, 2, 0).numpy(), str(path))
    batch['data_samples'][0].set_metainfo({'img_path': str(path)})
    out = tmp_path / 'boxes.png'
    pictures.draw_boxes(models, [batch], out, side=48)
    assert matplotlib.image.imread(out).std() > 0.05
    regions, grid, sides = pictures.distributions(models, batch, count=2)
    assert len(regions) == 2
    assert not sides
    assert set(regions[0]) == set(models)
    total = torch.tensor(regions[0]['float']).sum(dim=-1)
    torch.testing.assert_close(total, torch.ones(4))
    assert len(regions[0]['float'][0]) == grid.num_points
    plain = {'float': small.build(FASTER.format('plain')).eval()}
    with pytest.raises(ValueError, match='no grid head'):
        pictures.distributions(plain, batch, count=2)


def test_the_crop_holds_most_boxes(pictures):
    boxes = torch.tensor(
        [
            [0.0, 0, 4, 4],
            [80.0, 80, 84, 84],
            [90.0, 84, 94, 90],
            [86.0, 70, 90, 74],
        ]
    )
    left, top = pictures.crop_around(boxes, (100, 120), 40)
    assert 0 <= left <= 80
    assert 0 <= top <= 60
    centers = (boxes[1:, :2] + boxes[1:, 2:]) / 2
    corner = torch.tensor([left, top])
    assert ((centers >= corner) & (centers <= corner + 40)).all()


def test_models_are_those_of_the_table(monkeypatch, pictures):
    calls = []
    monkeypatch.setattr(
        pictures, 'load_float', lambda *_: ('cfg', 'float model')
    )
    monkeypatch.setattr(
        pictures,
        'quantize',
        lambda *args, **kwargs: (calls.append((args, kwargs)), {}),
    )
    table = SimpleNamespace(
        config='a.py',
        checkpoint='a.pth',
        name='a',
        calibration={},
        recipe_name=lambda bits, *, method: f'scope::{bits}_{method}',
    )
    cfg, models = pictures.models_of(table, ['w4a4_head-mse'], seed=3)
    assert cfg == 'cfg'
    assert list(models) == ['float', 'w4a4_head-mse']
    assert calls[0][1]['recipe'] == 'scope::w4a4_head-mse'
    assert calls[0][1]['seed'] == 3
