import pytest
import torch
from wild_net import WildNet

from taskptq.analysis.sensitivity.gradient import NotDifferentiableError
from taskptq.analysis.sensitivity.hopeless import LEAST_EFFECTIVE_BITS
from taskptq.engine.sensitivity import sensitivity
from taskptq.engine.sensitivity_run import SensitivitySettings


@pytest.fixture
def batches():
    return [torch.randn(4, 3, 8, 8)]


def test_a_model_in_memory_stays_as_it_is(batches):
    model = WildNet().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    report = sensitivity(model, batches, recipe='w8a8_mse')
    assert report.estimator == 'gradient'
    assert report.sorted()[0].name == 'depthwise.input_quantizer'
    assert report.roles
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert len(after) == len(before)


def test_a_model_without_gradients_is_measured(batches):
    class Cut(WildNet):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    settings = SensitivitySettings(candidates=(8,), roles=False)
    report = sensitivity(Cut(), batches, settings=settings)
    assert report.estimator == 'alone'
    assert 'Cut gives no gradients' in report.notes[0]
    with pytest.raises(NotDifferentiableError, match='Cut'):
        sensitivity(
            Cut(), batches, settings=SensitivitySettings(estimator='gradient')
        )


def test_own_forward_and_estimator(batches):
    report = sensitivity(
        WildNet(),
        [{'image': batches[0]}],
        forward=lambda m, batch: m(batch['image']),
        recipe='w8a8_minmax',
        settings=SensitivitySettings(estimator='leave-out', roles=False),
    )
    assert report.estimator == 'leave-out'
    assert not report.roles


def test_a_config(tiny_path, float_checkpoint, tmp_path):
    out = tmp_path / 'out'
    report = sensitivity(
        tiny_path,
        float_checkpoint,
        recipe=['w8a8', {'qconfig': {'edge_bits': None}}],
        num_images=8,
        settings=SensitivitySettings(metric=True, candidates=(4, 8)),
        out=out,
    )
    assert report.num_images == 8
    assert report.metric_float is not None
    assert all(role.metric is not None for role in report.roles)
    assert sorted(p.name for p in out.iterdir()) == [
        'evaluations',
        'sensitivity.json',
        'sensitivity.png',
    ]


def test_refusals(batches, tmp_path):
    with pytest.raises(ValueError, match='needs a config'):
        sensitivity(
            WildNet(), batches, settings=SensitivitySettings(metric=True)
        )
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='out'):
        sensitivity(WildNet(), batches, out=tmp_path / 'file')
    with pytest.raises(ValueError, match='recipe'):
        sensitivity(WildNet(), batches, recipe='w8a8_nothing')


@pytest.mark.slow
@pytest.mark.data('coco_mini', 'coco_mini_val', 'weights')
def test_the_tensor_that_costs_yolox_a_third_of_its_ap(
    registry_guard, repo_root, monkeypatch
):
    monkeypatch.chdir(repo_root)
    report = sensitivity(
        'configs/yolox/yolox_nano_coco-mini.py',
        'data/weights/yolox_nano_coco.pth',
        recipe='w8a8_minmax',
        num_images=4,
        settings=SensitivitySettings(
            candidates=(8,), num_probes=2, roles=False
        ),
    )
    worst = report.sorted()[0]
    assert worst.layer.startswith('backbone.stage1.0.depthwise_conv')
    assert worst.point == 'activation'
    assert worst.loss > 0.5 * report.estimated
    assert worst.producer == 'SiLU'
    assert worst.peak_to_std > 20
    # What a plain run warns of.
    assert worst.effective_bits < LEAST_EFFECTIVE_BITS
    assert 'activation=dict(per_channel=True)' in report.sentences()[0]


@pytest.mark.slow
@pytest.mark.data('camvid')
def test_a_healthy_segformer_is_not_warned_of(
    registry_guard, repo_root, monkeypatch
):
    monkeypatch.chdir(repo_root)
    report = sensitivity(
        'configs/segformer/segformer_mit-tiny_camvid.py',
        'configs/segformer/checkpoints/segformer_mit-tiny_camvid.pth',
        recipe='w8a8_mse',
        num_images=2,
        settings=SensitivitySettings(
            candidates=(8,), num_probes=1, roles=False
        ),
    )
    inputs = [p for p in report.points if p.point == 'activation']
    assert min(p.effective_bits for p in inputs) > LEAST_EFFECTIVE_BITS
