"""taskptq.apis.quantize, on a real small detector with random weights."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from taskptq import apis
from taskptq.engine import config_quantization
from taskptq.engine.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/retinanet/retinanet_r18-half_fpn_bccd.py'


@pytest.fixture
def scopes():
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def config(scopes):
    """The config with absolute paths and a model that is small and quick."""
    from mmengine.config import Config

    config = Config.fromfile(CONFIG)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[name].dataset.data_root = f'{ROOT}/data/bccd/'
    config.model.backbone.base_channels = 8
    config.model.neck.in_channels = [8, 16, 32, 64]
    return config


@pytest.fixture
def checkpoint(config, tmp_path):
    model = apis.build_model(config)
    path = tmp_path / 'float.pth'
    state = {
        k: v.half() if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }
    torch.save({'state_dict': state}, path)
    return path


def predict(model, source):
    batch = source.collate([source.dataset[0], source.dataset[1]])
    with torch.no_grad():
        return [p.pred_instances for p in model.test_step(batch)]


@pytest.mark.parametrize(
    'name',
    [
        'conditional_detr/conditional-detr_r18-half_bccd.py',
        'deformable_detr/deformable-detr_r18-half_bccd.py',
    ],
)
def test_a_config_can_be_built_from_twice(name, scopes):
    config = apis.read_config(ROOT / 'configs' / name)
    before = config.model.to_dict()
    names = [set(apis.build_model(config).state_dict()) for _ in range(2)]
    assert names[0] == names[1]
    assert config.model.to_dict() == before


@pytest.mark.data('bccd')
def test_quantize_and_load_again(config, checkpoint, tmp_path):
    model, report = apis.quantize(
        config,
        checkpoint,
        recipe='w4a4_minmax',
        calibration=dict(num_images=4, batch_size=2),
        out=tmp_path / 'out/q.pth',
        device='cpu',
    )
    assert report['calibration']['num_batches'] == 2
    assert report['reconstruction'] is None
    assert report['swap']['num_float'] == 0
    assert (tmp_path / 'out/swap_report.txt').is_file()
    assert model.dataset_meta['classes'] == ('RBC', 'WBC', 'Platelets')
    again = apis.load_quantized(config, tmp_path / 'out/q.pth')
    source = apis.evaluation_source(config)
    pairs = zip(predict(model, source), predict(again, source), strict=True)
    for written, read in pairs:
        assert torch.equal(written.scores, read.scores)
        assert torch.equal(written.bboxes, read.bboxes)
    with pytest.raises(ValueError, match='quantized already'):
        apis.quantize(
            config,
            tmp_path / 'out/q.pth',
            recipe='w4a4_minmax',
            calibration=dict(num_images=4),
            work_dir=tmp_path,
            device='cpu',
        )


@pytest.mark.data('bccd')
def test_calibration_on_the_test_split(config, checkpoint, tmp_path):
    settings = dict(num_images=2, dataset=config.test_dataloader.dataset)

    def quantize(**options):
        return apis.quantize(
            config,
            checkpoint,
            qconfig={},
            calibration=settings,
            work_dir=tmp_path,
            device='cpu',
            **options,
        )

    with pytest.raises(ValueError, match='72 calibration images are in'):
        quantize()
    _, report = quantize(allow_overlap=True)
    assert Path(report['checkpoint']) == tmp_path / 'quantized.pth'


def test_fragment_brings_its_whole_method(
    monkeypatch, config, checkpoint, tmp_path
):
    seen = {}

    def stop(model, content, *, path):
        raise InterruptedError

    def remember(*args, **kwargs):
        seen.update(kwargs)
        return recipe(*args, **kwargs)

    fragment = tmp_path / 'fragment.py'
    fragment.write_text(
        'qconfig = dict()\n'
        'reconstruction = dict(drop_prob=0.5)\n'
        "rewrites = [dict(type='AttentionCentering')]\n"
        "loss = dict(type='MSEReconLoss')\n"
    )
    recipe = Recipe.from_config
    monkeypatch.setattr(Recipe, 'from_config', remember)
    monkeypatch.setattr(config_quantization, 'load_float_weights', stop)
    with pytest.raises(InterruptedError):
        apis.quantize(config, checkpoint, qconfig=fragment, device='cpu')
    assert seen['reconstruction']['drop_prob'] == 0.5
    assert seen['rewrites'] == [{'type': 'AttentionCentering'}]
    assert seen['loss'] == {'type': 'MSEReconLoss'}


def test_settings_are_checked_before_anything_is_read(config, tmp_path):
    (tmp_path / 'images.py').write_text('calibration = dict(num_images=3)\n')
    with pytest.raises(ValueError, match='sets no qconfig'):
        apis.quantize(
            config, tmp_path / 'no.pth', qconfig=tmp_path / 'images.py'
        )
    with pytest.raises(ValueError, match='num_image'):
        apis.quantize(
            config,
            tmp_path / 'no.pth',
            qconfig={},
            calibration=dict(num_image=3),
        )
    with pytest.raises(FileNotFoundError, match=r'no\.pth'):
        apis.quantize(config, tmp_path / 'no.pth', qconfig={})


class Touch:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_nothing_of_a_strangers_file_runs(config, tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    torch.save({'taskptq': {'schema': 2}, 'meta': Touch(mark)}, path)
    for read in (
        lambda: apis.quantize(
            config, path, qconfig={}, work_dir=tmp_path / 'work'
        ),
        lambda: apis.load_quantized(config, path),
    ):
        with pytest.raises(ValueError, match='trust_checkpoint=True') as error:
            read()
        assert '\n' not in str(error.value)
        assert not mark.exists()


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(allow_overlap='False'), "allow_overlap='False'"),
        (dict(trust_checkpoint=1), 'trust_checkpoint=1'),
        (dict(resume='no'), "resume='no'"),
    ],
)
def test_switches_are_true_or_false(config, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        apis.quantize(config, tmp_path / 'no.pth', qconfig={}, **settings)


def test_results_must_be_writable(config, tmp_path):
    (tmp_path / 'file').touch()
    for settings, words in (
        (dict(out=tmp_path), 'is a folder'),
        (dict(work_dir=tmp_path / 'file'), 'is not a folder'),
        (dict(out=tmp_path / 'file' / 'q.pth'), 'is not a folder'),
    ):
        with pytest.raises(ValueError, match=words):
            apis.quantize(config, tmp_path / 'no.pth', qconfig={}, **settings)


def test_a_file_of_which_most_is_left_over(config, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    size = sum(value.numel() for value in state.values())
    path = tmp_path / 'larger.pth'
    torch.save({**state, 'student.weight': torch.ones(size + 9)}, path)
    with pytest.raises(ValueError, match='does not use 1 of'):
        apis.quantize(
            config,
            path,
            qconfig={},
            work_dir=tmp_path / 'work',
            device='cpu',
            calibration=dict(num_images=2),
        )


def test_reads_configs_of_other_packages():
    config = apis.read_config(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    )
    assert config.model.type == 'FasterRCNN'


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('mmdet::faster_rcnn/nothing.py', 'the nearest of mmdet are mmdet::'),
        ('mmdet::nothing.py', 'the nearest of mmdet are mmdet::'),
        ('foo::a/b.py', "the package 'foo' is not installed"),
        ('mmpose::a/b.py', "the package 'mmpose' is not installed"),
    ],
)
def test_refuses_configs_that_other_packages_lack(name, reason, monkeypatch):
    """And installs none of these packages."""
    import subprocess

    monkeypatch.setattr(subprocess, 'check_call', pytest.fail)
    monkeypatch.setattr(subprocess, 'Popen', pytest.fail)
    with pytest.raises(FileNotFoundError, match=f'no config {name}.*{reason}'):
        apis.read_config(name)
