"""A quantized file restores after rewrites: only values have changed."""

import copy

import pytest
import torch

from taskptq.testing import tiny_batches, tiny_model

pytest.importorskip('mmengine')

REWRITES = [
    dict(type='KeyShift', c=6.0, patterns=None),
    dict(type='BimodalIntegration', patterns=['*attn']),
    dict(type='AttentionCentering'),
    dict(type='CrossLayerEqualization'),
]


def randomized(model):
    """Fill every bias with noise: an exact rewrite must face it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'bias' in name:
                parameter.normal_(std=0.5, generator=generator)
    return model.eval()


def quantize(model, name, folder, *, rewrites):
    from taskptq.engine.pipeline import quantize_model
    from taskptq.engine.recipe import Recipe

    qconfig = dict(
        weight=dict(num_bits=4), activation=dict(num_bits=4), edge_bits=None
    )
    recipe = Recipe.from_config(qconfig, rewrites=rewrites)
    return quantize_model(
        model, tiny_batches(name), recipe=recipe, work_dir=folder
    )


@pytest.mark.parametrize('name', ['transformer', 'window'])
def test_quantize_and_restore(name, tmp_path):
    from taskptq.engine.restore import restore_model
    from taskptq.export.checkpoint import load

    model = randomized(tiny_model(name))
    plain = copy.deepcopy(model)
    report = quantize(model, name, tmp_path / 'a', rewrites=REWRITES)
    assert [r['rewrite'] for r in report['rewrites']] == [
        r['type'] for r in REWRITES
    ]
    assert all(r['num_applied'] > 0 for r in report['rewrites'])
    assert all(r['max_relative_error'] <= 1e-5 for r in report['rewrites'])
    fresh = tiny_model(name, seed=5)
    recipe = restore_model(load(tmp_path / 'a' / 'quantized.pth'), fresh)
    assert recipe['rewrites'] == REWRITES
    quantize(plain, name, tmp_path / 'b', rewrites=[])
    with torch.no_grad():
        for batch in tiny_batches(name, seed=9):
            assert torch.equal(fresh(batch), model(batch))
            assert not torch.equal(plain(batch), model(batch))


SCALE = [
    dict(type='ChannelShiftScale'),
    dict(type='HeadRotation', always=True),
    dict(type='ChannelScale', least_gain=1.01),
]


@pytest.mark.parametrize('name', ['transformer', 'window'])
def test_changed_structures_are_restored(name, tmp_path):
    from taskptq.engine.restore import restore_model
    from taskptq.export.checkpoint import QuantizedCheckpointError, load
    from taskptq.export.schema import compute_digest

    model = randomized(tiny_model(name))
    report = quantize(model, name, tmp_path, rewrites=SCALE)
    assert report['rewrites'][-1]['num_applied'] > 0
    payload = load(tmp_path / 'quantized.pth')
    (change,) = payload['structure']['rewrites']
    fresh = tiny_model(name, seed=5)
    restore_model(payload, fresh)
    for layer in change['layers']:
        assert 'Scaled' in type(fresh.get_submodule(layer)).__name__
    with torch.no_grad():
        for batch in tiny_batches(name, seed=9):
            assert torch.equal(fresh(batch), model(batch))
    payload['structure']['rewrites'] = [dict(change, layers=['neck'])]
    payload['digest'] = compute_digest(payload)
    untouched = tiny_model(name)
    with pytest.raises(QuantizedCheckpointError, match="'neck' is no layer"):
        restore_model(payload, untouched)
    assert type(untouched.head) is torch.nn.Linear


def test_outline_takes_no_memory_and_shares_what_was_shared():
    from taskptq.engine.restore import outline

    model = tiny_model('conv')
    model.twin = model.head
    sketch = outline(model)
    assert all(value.is_meta for value in sketch.state_dict().values())
    assert sketch.twin is sketch.head
    assert sketch.state_dict().keys() == model.state_dict().keys()
    assert not any(v.is_meta for v in model.state_dict().values())
