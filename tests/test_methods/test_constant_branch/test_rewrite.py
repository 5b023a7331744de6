"""What no image changes is computed once, exactly."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.constant_branch import ConstantBranch
from taskptq.methods.constant_branch.stored import StoredOutput
from taskptq.methods.rewriting.replay import replay, structures
from taskptq.recipes import resolve

TINY_TASK = Path(__file__).parents[2] / 'tiny_task'


def stats_for(images):
    return SimpleNamespace(
        batches=images, forward=lambda model, batch: model(batch)
    )


def entries_of(report):
    return {entry.name: entry for entry in report.entries}


def test_output_stays_and_work_is_saved(queries, images):
    expected = [queries(batch).detach() for batch in images]
    larger = torch.rand(3, 3, 40, 8)
    of_larger = queries(larger).detach()
    report = ConstantBranch()(queries, stats_for(images))
    entries = entries_of(report)
    # Not `behind`, which an image reaches, nor `size`, which its rows change.
    assert set(entries) == {'layers.0.self_attn', 'place'}
    assert all(entry.status == 'applied' for entry in report.entries)
    assert isinstance(queries.place, StoredOutput)
    assert entries['place'].details == {
        'macs': 5 * 16 * 2,
        'weights': 34,
        'stored': 10,
    }
    # Three projections and one behind, and two products of 5 x 5 weights.
    macs = entries['layers.0.self_attn'].details['macs']
    assert macs == 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16
    for batch, before in zip(images, expected, strict=True):
        assert torch.equal(queries(batch), before)
    torch.testing.assert_close(queries(larger), of_larger)
    assert report.max_relative_error < 1e-6


def test_replayed_from_a_report(queries, images):
    report = ConstantBranch()(queries, stats_for(images))
    torch.manual_seed(7)
    fresh = type(queries)().eval()
    replay(fresh, structures([report.to_dict()]))
    fresh.load_state_dict(queries.state_dict())
    assert torch.equal(fresh(images[0]), queries(images[0]))


def test_patterns(queries, images):
    report = ConstantBranch(patterns=['place'])(queries, stats_for(images))
    assert list(entries_of(report)) == ['place']
    with pytest.raises(ValueError, match="pattern 'neck' matches no"):
        ConstantBranch(patterns=['neck'])(queries, stats_for(images))


class FixedSize(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        if images.shape[2] != 16:
            raise ValueError('16 rows are wanted')
        return self.model(images)


def test_models_of_one_size(queries, images):
    model = FixedSize(queries)
    report = ConstantBranch()(model, stats_for(images))
    for entry in report.entries:
        assert entry.status == 'skipped'
        assert '16 rows are wanted' in entry.reason
        assert 'set fixed_size=True' in entry.reason
    assert report.structure == {}
    assert isinstance(queries.place, nn.Linear)
    report = ConstantBranch(fixed_size=True)(model, stats_for(images))
    assert set(entries_of(report)) == {
        'model.layers.0.self_attn',
        'model.place',
        'model.size',
    }
    assert report.structure['outputs']


class Reader(nn.Module):
    """Reads the weight of a module that it also calls."""

    def __init__(self, queries):
        super().__init__()
        self.queries = queries

    def forward(self, images):
        return self.queries(images) + self.queries.place.weight.sum()


def test_what_is_read_otherwise_is_taken_back(queries, images):
    model = Reader(queries)
    expected = model(images[0]).detach()
    entries = entries_of(ConstantBranch()(model, stats_for(images)))
    assert entries['queries.place'].status == 'undone'
    assert 'AttributeError' in entries['queries.place'].reason
    assert entries['queries.layers.0.self_attn'].status == 'applied'
    assert torch.equal(model(images[0]), expected)


def test_training_images_only_and_no_data(queries):
    with pytest.raises(ValueError, match='calibration set is empty'):
        ConstantBranch()(queries, stats_for([]))
    tokens = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='holds no images'):
        ConstantBranch()(tokens, stats_for([torch.rand(2, 4)]))


@pytest.fixture
def detr(registry_guard, monkeypatch):
    """A tiny DETR of mmdet and batches of its training data."""
    pytest.importorskip('mmdet')
    monkeypatch.syspath_prepend(str(TINY_TASK))
    sys.modules.pop('tiny_detr', None)
    import tiny_detr
    from mmengine.registry import MODELS, DefaultScope, init_default_scope
    from mmengine.runner import Runner

    scopes = dict(DefaultScope._instance_dict)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = tiny_detr.config(tiny_detr.detr())
    loader = Runner.build_dataloader(config['train_dataloader'])
    yield MODELS.build(config['model']).eval(), list(loader)
    sys.modules.pop('tiny_detr', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def test_detr_of_mmdet(detr):
    model, batches = detr

    def boxes():
        with torch.no_grad():
            found = model.test_step(batches[1])
        return torch.stack([one.pred_instances.bboxes for one in found])

    expected = boxes()
    stats = SimpleNamespace(
        batches=batches, forward=lambda model, batch: model.test_step(batch)
    )
    (entry,) = ConstantBranch()(model, stats).entries
    assert entry.name == 'decoder.layers.0.self_attn'
    assert entry.status == 'applied'
    assert torch.equal(boxes(), expected)


def test_a_quantized_file_has_the_outputs(detr, tmp_path):
    from taskptq.engine.pipeline import quantize_model
    from taskptq.engine.recipe import Recipe
    from taskptq.engine.restore import restore_model
    from taskptq.export.files import load

    model, batches = detr
    fresh = copy.deepcopy(model)
    settings = resolve('w4a8_mse-constant-branch')
    quantize_model(
        model,
        batches,
        recipe=Recipe.from_config(**settings),
        work_dir=tmp_path,
        out=tmp_path / 'q.pth',
    )
    payload = load(tmp_path / 'q.pth')
    (change,) = payload['structure']['rewrites']
    assert change['rewrite'] == 'ConstantBranch'
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(0.5)
    restore_model(payload, fresh)
    found = fresh.decoder.layers[0].self_attn
    assert isinstance(found, StoredOutput)
    one, two = (
        m.test_step(copy.deepcopy(batches[0]))[0].pred_instances.bboxes
        for m in (model.eval(), fresh.eval())
    )
    assert torch.equal(one, two)
