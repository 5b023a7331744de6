"""A YOLOX detector without any mm package: numpy, OpenCV and ONNX Runtime.

python projects/deployment/yolox.py model.onnx image.jpg
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def main(file: str, picture: str, score: float = 0.3) -> None:
    """Print class, score and box (x1, y1, width, height) of each object."""
    session = onnxruntime.InferenceSession(file)
    said = session.get_modelmeta().custom_metadata_map
    side, names = (
        json.loads(said[f'taskptq.{key}']) for key in ('input_size', 'classes')
    )
    image = cv2.imread(picture)
    scale = min(side[0] / image.shape[0], side[1] / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale)[: side[0], : side[1]]
    images = np.full((1, 3, *side), 114, np.float32)
    images[0, :, : small.shape[0], : small.shape[1]] = small.transpose(2, 0, 1)
    keys = [output.name for output in session.get_outputs()]
    raw = dict(zip(keys, session.run(None, {'images': images}), strict=True))
    boxes, scores = [], []
    for level, stride in enumerate((8, 16, 32)):
        found = [
            raw[f'{kind}.{level}'][0].reshape(
                raw[f'{kind}.{level}'].shape[1], -1
            )
            for kind in ('cls_scores', 'bbox_preds', 'objectnesses')
        ]
        width = side[1] // stride
        place = np.arange(found[0].shape[1])
        cell = np.stack([place % width, place // width])
        center = (found[1][:2] + cell) * stride
        size = np.exp(found[1][2:]) * stride
        boxes.append(np.concatenate([center - size / 2, size]).T / scale)
        scores.append((sigmoid(found[0]) * sigmoid(found[2])).T)
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    labels, best = scores.argmax(axis=1), scores.max(axis=1)
    for i in cv2.dnn.NMSBoxesBatched(boxes, best, labels, score, 0.65):
        print(
            f'{names[labels[i]]:16} {best[i]:.3f} {boxes[i].round(1).tolist()}'
        )


if __name__ == '__main__':
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
