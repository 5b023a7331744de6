"""Write the annotations of VisDrone2019-DET as COCO JSON.

    python projects/small_objects/convert_visdrone.py data/VisDrone2019-DET

For each split's folder with ``images`` and ``annotations`` it writes
``VisDrone2019-DET-<split>/<split>.json``. A line of the text files is ``left,
top, width, height, score, category, truncation, occlusion``. Boxes of score 0
and of the categories 0 (ignored region) and 11 (others) become crowds of all
classes, which COCO's evaluation ignores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLASSES = (
    'pedestrian',
    'people',
    'bicycle',
    'car',
    'van',
    'truck',
    'tricycle',
    'awning-tricycle',
    'bus',
    'motor',
)
PREFIX = 'VisDrone2019-DET-'
IGNORED = (0, 11)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels, from the file's header."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def read_boxes(path: Path) -> Iterator[tuple[list[int], int, bool]]:
    """Yield (left, top, width, height), category, and whether the box counts.

    Args:
        path: Text file of an image.

    Raises:
        ValueError: If a line has fewer than six numbers.
    """
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = [field for field in line.strip().split(',') if field]
        if not fields:
            continue
        if len(fields) < 6:
            raise ValueError(
                f'{path}, line {number}: {line!r} has fewer than six numbers'
            )
        left, top, width, height, score, category = map(int, fields[:6])
        if width > 0 and height > 0:
            counts = score != 0 and category not in IGNORED
            yield [left, top, width, height], category, counts


def convert(folder: Path) -> dict[str, Any]:
    """Return a split as COCO's dict.

    Args:
        folder: Folder with ``images`` and ``annotations``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(sorted((folder / 'images').glob('*.jpg'))):
        width, height = image_size(path)
        images.append(
            {
                'id': number,
                'file_name': path.name,
                'width': width,
                'height': height,
            }
        )
        boxes = folder / 'annotations' / f'{path.stem}.txt'
        for box, category, counts in read_boxes(boxes):
            classes = [category] if counts else range(1, len(CLASSES) + 1)
            for one in classes:
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': number,
                        'category_id': one,
                        'bbox': box,
                        'area': box[2] * box[3],
                        'iscrowd': int(not counts),
                    }
                )
    categories = [
        {'id': number, 'name': name}
        for number, name in enumerate(CLASSES, start=1)
    ]
    return {
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }


def main(argv: list[str] | None = None) -> None:
    """Convert all existing splits.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If there is no split, or a text file is malformed.
    """
    parser = argparse.ArgumentParser(description='VisDrone to COCO JSON')
    parser.add_argument('root', type=Path, help='folder of the splits')
    args = parser.parse_args(argv)
    folders = sorted(
        path.parent for path in args.root.glob(f'{PREFIX}*/annotations')
    )
    if not folders:
        raise SystemExit(
            f'{args.root} has no {PREFIX}<split>/annotations: '
            'unpack the official archives there'
        )
    for folder in folders:
        try:
            content = convert(folder)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        out = folder / f'{folder.name.removeprefix(PREFIX)}.json'
        out.write_text(json.dumps(content), encoding='utf-8')
        print(
            f'{out}: {len(content["images"])} images, '
            f'{len(content["annotations"])} boxes'
        )


if __name__ == '__main__':
    main()
