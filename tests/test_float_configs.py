"""The float baselines: configs build, committed checkpoints fit them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
# config under configs/, dataset under data/, metric, floor of the metric on
# the first NUM_IMAGES validation images (a random model is far below)
BASELINES = [
    (
        'faster_rcnn/faster-rcnn_r18-half_fpn_bccd.py',
        'bccd',
        'coco/bbox_mAP',
        0.40,
    ),
    (
        'retinanet/retinanet_r18-half_fpn_bccd.py',
        'bccd',
        'coco/bbox_mAP',
        0.40,
    ),
    ('segformer/segformer_mit-tiny_camvid.py', 'camvid', 'mIoU', 35.0),
    (
        'conditional_detr/conditional-detr_r18-half_bccd.py',
        'bccd',
        'coco/bbox_mAP',
        0.35,
    ),
    (
        'deformable_detr/deformable-detr_r18-half_bccd.py',
        'bccd',
        'coco/bbox_mAP',
        0.40,
    ),
]
NAMES = [row[0] for row in BASELINES]
MAX_BYTES = 10 * 2**20
NUM_IMAGES = 24


@pytest.fixture
def host_scope() -> Any:
    """Restore mmengine's global default scope after the test."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        init_default_scope(before.scope_name)


def load_config(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


def checkpoint_path(name: str) -> Path:
    path = ROOT / 'configs' / name
    return path.parent / 'checkpoints' / f'{path.stem}.pth'


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def load_tool(name: str) -> ModuleType:
    return importlib.import_module(f'taskptq.cli.{name}')


@pytest.mark.parametrize('name', NAMES)
def test_model_builds_and_needs_no_download(
    name: str, host_scope: None
) -> None:
    cfg = load_config(name)
    model = build(cfg)
    assert 1e5 < sum(p.numel() for p in model.parameters()) < 5e6
    assert cfg.model.backbone.get('init_cfg') is None
    classes = len(cfg.metainfo.classes)
    head = (
        cfg.model.get('decode_head')
        or cfg.model.get('bbox_head')
        or cfg.model.roi_head.bbox_head
    )
    assert head.num_classes == classes == len(cfg.metainfo.palette)


@pytest.mark.parametrize('name', NAMES)
def test_checkpoint_fits(name: str, host_scope: None) -> None:
    cfg = load_config(name)
    path = checkpoint_path(name)
    assert path.stat().st_size < MAX_BYTES
    stored = torch.load(path, map_location='cpu', weights_only=True)
    assert set(stored) == {'state_dict', 'meta'}
    model = build(cfg)
    model.load_state_dict(stored['state_dict'], strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), key
    meta = stored['meta']
    assert meta['config'] == Path(name).name
    assert meta['dataset_meta']['classes'] == list(cfg.metainfo.classes)


@pytest.mark.parametrize('name', NAMES)
def test_splits_do_not_mix(name: str) -> None:
    cfg = load_config(name)
    sources = [
        (loader.dataset.get('ann_file'), str(loader.dataset.data_prefix))
        for loader in (
            cfg.train_dataloader,
            cfg.val_dataloader,
            cfg.test_dataloader,
        )
    ]
    assert len(set(sources)) == 3
    assert cfg.test_dataloader.batch_size == 8


def test_segformer_attends() -> None:
    cfg = load_config(NAMES[2])
    layers = sum(cfg.model.backbone.num_layers)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    found = [
        m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    ]
    assert len(found) == layers


def first_images(cfg: Config, folder: Path) -> None:
    """Let a detector's test run see the first images of `val.json` only."""
    source = ROOT / cfg.data_root / 'val.json'
    content = json.loads(source.read_text())
    content['images'] = content['images'][:NUM_IMAGES]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [
        box for box in content['annotations'] if box['image_id'] in kept
    ]
    out = folder / 'first.json'
    out.write_text(json.dumps(content))
    cfg.test_dataloader.dataset.ann_file = str(out)
    cfg.test_evaluator.ann_file = str(out)


@pytest.mark.parametrize(
    ('name', 'metric', 'floor'),
    [
        pytest.param(*row[:1], *row[2:], marks=pytest.mark.data(row[1]))
        for row in BASELINES
    ],
)
def test_checkpoint_scores(
    name: str,
    metric: str,
    floor: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host_scope: None,
) -> None:
    monkeypatch.chdir(ROOT)
    cfg = load_config(name)
    cfg.work_dir = str(tmp_path)
    cfg.load_from = str(checkpoint_path(name))
    cfg.custom_hooks = []
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = cfg.val_evaluator
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    if cfg.default_scope == 'mmdet':
        first_images(cfg, tmp_path)
    else:
        cfg.test_dataloader.dataset.indices = NUM_IMAGES
    cfg.experiment_name = f'score_{Path(name).stem}'
    assert Runner.from_cfg(cfg).test()[metric] > floor


def training_checkpoint(value: float) -> dict[str, Any]:
    weight = torch.full((64, 4), value)
    return {
        'state_dict': {'fc.weight': weight[:2], 'steps': torch.tensor(7)},
        'optimizer': {'state': {}},
        'meta': {
            'epoch': 3,
            'iter': 30,
            'seed': 0,
            'dataset_meta': {
                'classes': ('a', 'b'),
                'palette': [(1, 2, 3), (4, 5, 6)],
            },
        },
    }


def test_publish_keeps_weights_and_plain_meta(tmp_path: Path) -> None:
    tool = load_tool('publish')
    source, out = tmp_path / 'epoch_3.pth', tmp_path / 'out.pth'
    log = tmp_path / 'scalars.json'
    log.write_text(
        '{"coco/bbox_mAP": 0.25, "time": 0.1, "step": 3}\n'
        '{"loss": 0.5, "step": 31}\n'
    )
    torch.save(training_checkpoint(0.1), source)
    tool.main(
        [
            'configs/some_model.py',
            str(source),
            str(out),
            '--half',
            '--metrics',
            str(log),
        ]
    )
    stored = torch.load(out, weights_only=True)
    assert set(stored) == {'state_dict', 'meta'}
    assert stored['state_dict']['fc.weight'].dtype == torch.float16
    assert stored['state_dict']['fc.weight'].untyped_storage().nbytes() == 16
    assert stored['state_dict']['steps'].item() == 7
    assert stored['meta']['config'] == 'some_model.py'
    assert stored['meta']['metrics'] == {'coco/bbox_mAP': 0.25}
    assert stored['meta']['dataset_meta'] == {
        'classes': ['a', 'b'],
        'palette': [[1, 2, 3], [4, 5, 6]],
    }


def test_publish_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    tool = load_tool('publish')
    source = tmp_path / 'epoch_3.pth'
    torch.save(training_checkpoint(1e6), source)
    with pytest.raises(ValueError, match=r'fc\.weight.*float16'):
        tool.publish(
            'c.py', checkpoint=str(source), out='unused.pth', half=True
        )
    assert not Path('unused.pth').exists()


def test_publish_refuses_a_file_without_weights(tmp_path: Path) -> None:
    tool = load_tool('publish')
    source = tmp_path / 'odd.pth'
    torch.save({'meta': {}}, source)
    with pytest.raises(ValueError, match='no state_dict'):
        tool.publish('c.py', checkpoint=str(source), out='unused.pth')


def test_train_applies_the_command_line(tmp_path: Path) -> None:
    tool = load_tool('train')
    args = tool.parse_args(
        [
            str(ROOT / 'configs' / NAMES[1]),
            '--seed',
            '5',
            '--work-dir',
            str(tmp_path),
            '--cfg-options',
            'train_cfg.max_epochs=2',
            'load_from=float.pth',
            '--resume',
        ]
    )
    cfg = tool.load_config(args)
    assert cfg.randomness.seed == 5
    assert cfg.train_cfg.max_epochs == 2
    assert cfg.work_dir == str(tmp_path)
    # Nothing to go on from: the training begins as the config says.
    assert not cfg.resume
    assert cfg.load_from == 'float.pth'
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    cfg = tool.load_config(args)
    assert cfg.resume
    assert cfg.load_from is None


def test_train_refuses_amp_with_a_special_wrapper() -> None:
    tool = load_tool('train')
    config = str(ROOT / 'configs' / NAMES[1])
    args = tool.parse_args(
        [config, '--amp', '--cfg-options', 'optim_wrapper.type=OtherWrapper']
    )
    with pytest.raises(SystemExit, match='OtherWrapper'):
        tool.load_config(args)
