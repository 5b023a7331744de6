import json

import pytest


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
    images = {item['id']: item['file_name'] for item in content['images']}
    for item in content['annotations']:
        assert (tmp_path / 'set' / images[item['image_id']]).is_file()
        x, y, width, height = item['bbox']
        assert x >= 0
        assert y >= 0
        assert x + width <= generator.WIDTH
        assert y + height <= generator.HEIGHT
        assert item['area'] == width * height > 25


def test_splits_share_no_image(demo, tmp_path):
    draw_file = demo('demo_parts.generator').draw_file
    for split in ('train', 'test'):
        (tmp_path / split).mkdir()
        draw_file(tmp_path, split=split, index=0)
    first, other = (
        (tmp_path / split / '0000.png').read_bytes()
        for split in ('train', 'test')
    )
    assert first != other


def test_an_unknown_split_has_no_seed(demo, tmp_path):
    with pytest.raises(ValueError, match='val'):
        demo('demo_parts.generator').draw_file(tmp_path, split='val', index=0)
