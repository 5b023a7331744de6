import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config

from taskptq.engine.checkpoint_file import load_float_weights, read_checkpoint

DEMO = Path(__file__).resolve().parents[1]
CONFIGS = sorted((DEMO / 'configs').glob('*.py'))


@pytest.fixture
def demo(monkeypatch):
    """Import modules of the demo as its script does."""
    monkeypatch.syspath_prepend(str(DEMO))
    yield importlib.import_module
    for name in list(sys.modules):
        if name.split('.')[0] in ('demo_parts', 'run_demo'):
            del sys.modules[name]


def test_a_set_is_the_same_every_time(demo, tmp_path):
    generate = demo('demo_parts.generator').generate
    splits = {'train': 2, 'test': 1}
    for name in ('a', 'b'):
        assert generate(tmp_path / name, splits=splits)
    files = sorted(
        p.relative_to(tmp_path / 'a')
        for p in (tmp_path / 'a').rglob('*')
        if p.is_file()
    )
    assert len(files) == 6
    for file in files:
        first = (tmp_path / 'a' / file).read_bytes()
        assert first == (tmp_path / 'b' / file).read_bytes()


def test_a_set_is_made_once_and_again_when_it_is_another(demo, tmp_path):
    generate = demo('demo_parts.generator').generate
    assert generate(tmp_path / 'set', splits={'test': 1})
    assert not generate(tmp_path / 'set', splits={'test': 1})
    assert generate(tmp_path / 'set', splits={'test': 2})
    assert len(list((tmp_path / 'set' / 'test').iterdir())) == 2


def test_annotations_are_coco(demo, tmp_path):
    generator = demo('demo_parts.generator')
    generator.generate(tmp_path / 'set', splits={'test': 6})
    content = json.loads((tmp_path / 'set' / 'test.json').read_text())
    names = [category['name'] for category in content['categories']]
    assert tuple(names) == generator.CLASSES
    ids = [item['id'] for item in content['annotations']]
    assert len(set(ids)) == len(ids) > 12
    for item in content['annotations']:
        x, y, width, height = item['bbox']
        assert x >= 0
        assert y >= 0
        assert x + width <= generator.WIDTH
        assert y + height <= generator.HEIGHT
        assert item['area'] == width * height > 25


def test_splits_differ(demo):
    generator = demo('demo_parts.generator')
    first, _ = generator.make_image(np.random.default_rng((1, 0, 0)))
    other, _ = generator.make_image(np.random.default_rng((1, 1, 0)))
    assert (first != other).mean() > 0.5


@pytest.mark.parametrize('kind', ['bolt', 'nut', 'washer'])
def test_masks_fill_the_box_of_their_size(demo, kind):
    shapes = demo('demo_parts.shapes')
    place = shapes.Placement(
        center=(40.0, 30.0), size=12.0, angle=0.0, ratio=0.4
    )
    mask = shapes.part_mask(kind, place, width=80, height=60)
    box = demo('demo_parts.generator').bounding_box(mask)
    assert 22 <= box[2] <= 26
    assert 0 < mask.sum() < box[2] * box[3]
    if kind != 'bolt':
        assert mask[30, 40] == 0


def test_overlap_is_of_the_smaller_box(demo):
    overlap = demo('demo_parts.generator').overlap
    assert overlap((0, 0, 10, 10), (5, 0, 10, 4)) == pytest.approx(0.5)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_checkpoint_fits_its_config_and_is_small(demo):
    from taskptq.apis import build_model

    rows = demo('demo_parts.rows')
    root = DEMO.parents[1]
    path = root / rows.CHECKPOINT
    assert path.stat().st_size < 4e6
    model = build_model(root / rows.FLOAT_CONFIG)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    load_float_weights(model, read_checkpoint(path), path=path)


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


def measured(demo, title, ap):
    rows = demo('demo_parts.rows')
    row = rows.Row(key='k', title=title, config='c.py')
    return rows.Measured(
        row=row,
        command='python tools/test.py c.py c.pth',
        ap=ap,
        ap50=ap + 0.1,
        file_bytes=2_500_000,
        seconds=12.3,
    )


def test_table_relates_to_float(demo):
    report = demo('demo_parts.report')
    rows = [measured(demo, 'float', 0.5), measured(demo, 'W3A3', 0.4)]
    lines = report.text_table(rows).splitlines()
    assert lines[0].split()[:3] == ['model', 'AP', 'AP50']
    assert '100.0 %' in lines[2]
    assert '80.0 %' in lines[3]
    assert '2.50' in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_page_shows_table_picture_and_commands(demo, tmp_path):
    report = demo('demo_parts.report')
    out = tmp_path / 'report.html'
    report.write_html(
        [measured(demo, 'a < b', 0.5)],
        picture=tmp_path / 'boxes.png',
        out=out,
        seconds=100.0,
    )
    page = out.read_text()
    assert 'a &lt; b' in page
    assert 'src="boxes.png"' in page
    assert 'python tools/test.py c.py c.pth' in page


def test_failing_run_shows_the_end_of_its_log(demo, tmp_path):
    rows = demo('demo_parts.rows')
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'test.py').write_text(
        "raise SystemExit('this went wrong')\n"
    )
    with pytest.raises(RuntimeError, match='this went wrong'):
        rows.run_row(rows.ROWS[0], root=tmp_path, work_dir=Path('work'))
