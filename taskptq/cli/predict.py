"""Predict one image with an exported file.

    taskptq predict model.onnx image.jpg [--out boxes.jpg]

The file says how its images are prepared and, for one-stage detectors and
segmentors, how its outputs are decoded; other models need ``--config``.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import os
from pathlib import Path

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import numpy as np

from taskptq.cli.numbers import count, share
from taskptq.cli.projects import load_projects
from taskptq.engine.onnx_predict import (
    Prediction,
    predict_file,
    predict_with_host,
)
from taskptq.engine.onnx_preprocess import read_image
from taskptq.engine.refusals import (
    one_sentence,
    refuse_replaced_input,
    refuse_unwritable_file,
)
from taskptq.export.openvino_session import ONNXRUNTIME, RUNTIMES

PICTURES = ('.jpg', '.jpeg', '.png')
SHOWN = 20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Predict one image')
    parser.add_argument('file', help='exported file, *.onnx')
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--config', help='config of the model; lets the host decode'
    )
    parser.add_argument(
        '--out', help='picture (*.jpg, *.png) or *.json to write'
    )
    parser.add_argument(
        '--score',
        type=share,
        default=0.3,
        help='least score of a box (default: %(default)s)',
    )
    parser.add_argument(
        '--runtime',
        choices=list(RUNTIMES),
        default=ONNXRUNTIME,
        help='what runs the file (default: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=count, default=1, help='threads of the runtime'
    )
    args = parser.parse_args(argv)
    if args.out is not None and (
        Path(args.out).suffix.lower() not in (*PICTURES, '.json')
    ):
        parser.error(f'--out must end in .jpg, .png or .json, got {args.out}')
    return args


def color_of(label: int) -> tuple[int, int, int]:
    """Return a class's color, BGR; neighbors differ much."""
    hue = (label * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return int(255 * blue), int(255 * green), int(255 * red)


def draw(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Return an image, (H, W, 3) BGR, with the prediction drawn in it."""
    import cv2

    if prediction.label_map is not None:
        colors = np.array([color_of(i) for i in range(256)], np.float32)
        mixed = 0.5 * image + 0.5 * colors[prediction.label_map]
        return mixed.astype(np.uint8)
    drawn = image.copy()
    for box, score, label in zip(
        prediction.boxes, prediction.scores, prediction.labels, strict=True
    ):
        corners = [round(float(side)) for side in box]
        color = color_of(int(label))
        cv2.rectangle(drawn, tuple(corners[:2]), tuple(corners[2:]), color, 2)
        text = f'{prediction.name(int(label))} {score:.2f}'
        place = (corners[0], max(corners[1] - 4, 10))
        cv2.putText(
            drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1
        )
    return drawn


def write(out: str, image: str, prediction: Prediction) -> None:
    """Write a picture, or the prediction as JSON."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == '.json':
        text = json.dumps({'image': image, **prediction.to_dict()}, indent=1)
        path.write_text(text + '\n', encoding='utf-8')
        return
    import cv2

    drawn = draw(read_image(image), prediction)
    _, encoded = cv2.imencode(path.suffix, drawn)
    path.write_bytes(encoded.tobytes())


def lines(prediction: Prediction, *, score: float) -> list[str]:
    """Return what was found, a line each.

    Args:
        prediction: All that the file predicts.
        score: Least score of a box that is listed.
    """
    found = prediction.above(score).to_dict()
    if 'shares' in found:
        return [
            f'{name:16} {100 * value:6.2f} % of the pixels'
            for name, value in found['shares'].items()
        ]
    boxes = found['boxes']
    text = [
        f'{box["class"]:16} {box["score"]:.3f} {box["box"]}'
        for box in boxes[:SHOWN]
    ]
    if len(boxes) > SHOWN:
        text.append(f'... and {len(boxes) - SHOWN} more')
    if text:
        return text
    scores = prediction.scores
    if scores is None or not len(scores):
        return ['nothing found']
    return [
        f'no box scores {score:g} or more; the best has {max(scores):.3g}: '
        'lower --score to see it'
    ]


def main(argv: list[str] | None = None) -> None:
    """Predict one image.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    load_projects()
    with one_sentence():
        if args.out is not None:
            refuse_unwritable_file(args.out, name='--out')
            refuse_replaced_input(args.out, name='--out', inputs=[args.image])
        if args.config is None:
            found = predict_file(
                args.file,
                args.image,
                runtime=args.runtime,
                threads=args.threads,
            )
        else:
            found = predict_with_host(
                args.file,
                args.image,
                config=args.config,
                runtime=args.runtime,
                threads=args.threads,
            )
        if args.out is not None:
            write(args.out, args.image, found.above(args.score))
    print('\n'.join(lines(found, score=args.score)))
    if args.out is not None:
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
