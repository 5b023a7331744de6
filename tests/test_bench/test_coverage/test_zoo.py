"""Families of the hosts and their smallest configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskptq.bench.coverage.zoo import families, size_of, smallest


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['fcos_r101_fpn', 'fcos_r50_fpn', 'fcos_x101_fpn'], 'fcos_r50_fpn'),
        (
            ['yolox_s_8xb8-300e', 'yolox_nano_8xb8-300e'],
            'yolox_nano_8xb8-300e',
        ),
        (['vit-l_mask', 'segmenter_vit-b_mask'], 'segmenter_vit-b_mask'),
        (['mscan-l_1xb16', 'mscan-t_1xb16'], 'mscan-t_1xb16'),
        (['b_r50', 'a_r50'], 'a_r50'),
        (['x_fast-rcnn_r50', 'x_faster-rcnn_r50'], 'x_faster-rcnn_r50'),
    ],
)
def test_smallest_by_name(names: list[str], expected: str) -> None:
    assert smallest([Path(f'{name}.py') for name in names]).stem == expected


def test_name_without_a_size_counts_as_the_usual_one() -> None:
    assert size_of('nas_model') == size_of('some_r50_fpn')


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_families_of_an_installed_host(host: str) -> None:
    pytest.importorskip(host)
    found = families(host)
    assert len(found) > 40
    assert '_base_' not in found
    assert all(path.suffix == '.py' for p in found.values() for path in p)


def test_host_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match='mm_nothing is not installed'):
        families('mm_nothing')
