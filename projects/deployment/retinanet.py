"""A RetinaNet detector without any mm package: numpy, OpenCV, ONNX Runtime.

python projects/deployment/retinanet.py model.onnx image.jpg
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def main(file: str, picture: str, score: float = 0.3) -> None:
    """Print class, score and box (x1, y1, width, height) of each object."""
    session = onnxruntime.InferenceSession(file)
    said = session.get_modelmeta().custom_metadata_map
    side, names, steps, head = (
        json.loads(said[f'taskptq.{key}'])
        for key in ('input_size', 'classes', 'preprocessing', 'decoding')
    )
    normal = next(step for step in steps if step['step'] == 'normalize')
    image = cv2.imread(picture)
    # As the pipeline resizes: within the scale of the config, ratio kept.
    scale = steps[0]['scale']
    factor = min(
        max(scale) / max(image.shape[:2]), min(scale) / min(image.shape[:2])
    )
    small = cv2.resize(image, None, fx=factor, fy=factor)[..., ::-1]
    small = (small - np.float32(normal['mean'])) / np.float32(normal['std'])
    images = np.zeros((1, 3, *side), np.float32)
    images[0, :, : small.shape[0], : small.shape[1]] = small.transpose(2, 0, 1)
    keys = [output.name for output in session.get_outputs()]
    raw = dict(zip(keys, session.run(None, {'images': images}), strict=True))
    boxes, scores = [], []
    for level, (stride, base) in enumerate(
        zip(head['strides'], head['anchors'], strict=True)
    ):
        logits = raw[f'cls_scores.{level}'][0].transpose(1, 2, 0)
        deltas = raw[f'bbox_preds.{level}'][0].transpose(1, 2, 0)
        x, y = np.meshgrid(*map(np.arange, logits.shape[1::-1]))
        shift = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4) * stride[0]
        anchors = (shift + np.float32(base)).reshape(-1, 4)
        moved = deltas.reshape(-1, 4) * np.float32(head['stds'])
        size = anchors[:, 2:] - anchors[:, :2]
        center = (anchors[:, :2] + anchors[:, 2:]) / 2 + moved[:, :2] * size
        size = size * np.exp(moved[:, 2:].clip(-4.1, 4.1))
        boxes.append(np.concatenate([center - size / 2, size], 1) / factor)
        scores.append(1 / (1 + np.exp(-logits.reshape(-1, len(names)))))
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    labels, best = scores.argmax(axis=1), scores.max(axis=1)
    limit = head['iou_threshold']
    for i in cv2.dnn.NMSBoxesBatched(boxes, best, labels, score, limit):
        print(
            f'{names[labels[i]]:16} {best[i]:.3f} {boxes[i].round(1).tolist()}'
        )


if __name__ == '__main__':
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
