from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config

from taskptq.engine.checkpoint_file import load_float_weights, read_checkpoint

DEMO = Path(__file__).resolve().parents[1]
CONFIGS = sorted((DEMO / 'configs').glob('*.py'))


def test_checkpoint_is_small_accurate_and_fits_its_config(demo):
    from taskptq.apis import build_model

    rows = demo('demo_parts.rows')
    root = DEMO.parents[1]
    path = root / rows.CHECKPOINT
    assert path.stat().st_size < 3e6
    model = build_model(root / rows.FLOAT_CONFIG)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    checkpoint = read_checkpoint(path)
    load_float_weights(model, checkpoint, path=path)
    assert checkpoint['meta']['metrics']['coco/bbox_mAP_50'] > 0.95


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_name_classes_of_the_generator(demo, path):
    config = Config.fromfile(path)
    classes = demo('demo_parts.shapes').CLASSES
    for name in ('train_dataloader', 'test_dataloader'):
        assert tuple(config[name].dataset.metainfo.classes) == classes
    assert config.model.bbox_head.num_classes == len(classes)


def test_every_row_has_its_config(demo):
    rows = demo('demo_parts.rows').ROWS
    root = DEMO.parents[1]
    assert rows[0].key == 'float'
    for row in rows:
        hooks = Config.fromfile(root / row.config).custom_hooks
        has_ptq = any(h['type'] == 'taskptq.PTQHook' for h in hooks)
        assert has_ptq is (row.key != 'float')
