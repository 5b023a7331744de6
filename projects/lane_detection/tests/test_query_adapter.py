"""Q-DETR's objectives on LSTR: outputs query by query, distances of lanes."""

import pytest
import torch
from drawn_roads import ROADS, make_batch
from test_adapters import make
from test_lstr import SIZE, build, fitted_curves

from lane_detection.models.lstr_curves import curve_points, curve_rows
from lane_detection.query_adapter import LaneQueryAdapter
from taskptq.calibration import calibrate
from taskptq.engine.builder import build_adapter, build_loss
from taskptq.engine.recipe import Recipe
from taskptq.prepare import prepare
from taskptq.recipes import resolve
from taskptq.reconstruction import ReconstructionConfig, reconstruct
from taskptq.reconstruction.capture.cache import cache_of
from taskptq.reconstruction.losses import adapter_of
from taskptq.reconstruction.network import NetworkData

KINDS = ('cls', 'box', 'curve', 'attended', 'self_attended')
STEPS = dict(network_steps=2)


def quantized(method):
    """Return a calibrated tiny model, its batches and recipe."""
    torch.manual_seed(0)
    model = build().eval()
    batches = [make_batch(SIZE)]
    parts = resolve(f'lane_detection::w8a8_{method}')
    recipe = Recipe.from_config(**parts)
    prepare(model, recipe.qconfig)
    calibrate(model, batches, forward=forward)
    return model, batches, recipe


def forward(model, batch):
    """Run a model on one batch, as the engine does."""
    data = model.data_preprocessor(batch, False)
    return model(data['inputs'], mode='tensor')


@pytest.fixture
def aligned():
    return quantized('drd')


@torch.no_grad()
def test_names_and_shapes(aligned):
    model, batches, _ = aligned
    adapter = build_adapter(model).by_query()
    assert type(adapter) is LaneQueryAdapter
    heads = adapter.forward_heads(model, batches[0])
    assert set(heads) == {f'{kind}.{n}' for kind in KINDS for n in (0, 1)}
    images = len(batches[0]['data_samples'])
    assert heads['cls.1'].shape == (images, 5, 2)
    assert heads['box.0'].shape == (images, 5, 36)
    assert heads['attended.1'].shape == (images, 5, 16)
    whole = build_adapter(model).forward_heads(model, batches[0])
    assert torch.equal(whole['logits'], heads['cls.1'])
    assert torch.equal(whole['curve'], heads['curve.1'])
    metas = [one.metainfo for one in batches[0]['data_samples']]
    lanes = build_adapter(model).decode(whole, metas)
    for one, two in zip(adapter.decode(heads, metas), lanes, strict=True):
        assert len(one.points) == len(two.points)
    proxy = adapter.foreground_proxy(heads)
    assert torch.equal(proxy['box.0'], heads['cls.0'].softmax(dim=-1)[..., 1:])
    assert set(adapter.output_weights(heads)) == {'cls.1', 'box.1'}


def test_rows_are_those_of_the_lane():
    curve = fitted_curves(ROADS[0])[:1].requires_grad_()
    rows = curve_rows(curve, num_rows=101)
    drawn = rows.detach()
    points = curve_points(curve.detach(), num_points=2)[0]
    bottom, top = points
    assert drawn[0, round(100 * float(bottom[1]))] == pytest.approx(
        float(bottom[0]), abs=0.02
    )
    # Beyond its ends it goes on vertically.
    assert drawn[0, 0] == pytest.approx(float(top[0]), abs=1e-4)
    rows.sum().backward()
    assert curve.grad.isfinite().all()
    assert curve.grad.abs().sum() > 0
    wild = torch.full((1, 8), 100.0)
    assert curve_rows(wild, num_rows=3).abs().max() <= 2


DECODER = ['gptq-decoder', 'gptq-decoder-distortion', 'da', 'fqm', 'drd']


@pytest.mark.parametrize('method', DECODER)
def test_steps_on_the_decoder(method):
    model, batches, recipe = quantized(method)
    config = ReconstructionConfig.from_dict({**recipe.reconstruction, **STEPS})
    settings = dict(recipe.loss)
    if method in ('fqm', 'drd'):
        settings['teacher_score_thr'] = 0.0  # random weights are never sure
    loss = build_loss(settings)
    adapter = build_adapter(model)
    assert isinstance(adapter_of(loss, adapter), LaneQueryAdapter)
    names = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == 'AlignedQuantizer'
    ]
    assert len(names) == (4 if method in ('da', 'drd') else 0)
    report = reconstruct(
        model,
        batches,
        config,
        forward=forward,
        loss=loss,
        adapter=adapter,
        progress=False,
    )
    last = report.units[-1]
    assert last.name == ''
    assert last.steps == 2
    assert last.set_loss_start > 0
    if method in ('fqm', 'drd'):
        found = loss.report()
        assert found['steps'] == 2
        assert found['pairs_per_image'] > 0
        assert set(found['last_terms']) >= {'attended', 'box', 'class'}


def test_the_trunk_runs_once(aligned):
    model, batches, _ = aligned
    adapter = build_adapter(model).by_query()
    data = NetworkData(model, batches, adapter)
    trained = frozenset({'head.decoder.layers.0.self_attn.attn'})
    cache = cache_of(ReconstructionConfig(), directory=None)
    try:
        assert data.keep_trunks(trained, cache=cache)
        calls = []
        model.backbone.register_forward_hook(lambda *_: calls.append(1))
        data.run(0)
        assert not calls
    finally:
        cache.close()


def test_heads_without_queries_are_refused():
    with pytest.raises(ValueError, match='GANetHead has no queries'):
        build_adapter(make('ganet')).by_query()
