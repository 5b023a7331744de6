"""A segmentor without any mm package: numpy, OpenCV and ONNX Runtime.

python projects/deployment/segformer.py model.onnx image.jpg map.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def main(file: str, picture: str, out: str) -> None:
    """Write the class of each pixel as a gray picture, and print shares."""
    session = onnxruntime.InferenceSession(file)
    said = session.get_modelmeta().custom_metadata_map
    height, width = json.loads(said['taskptq.input_size'])
    resized, normal, *_ = json.loads(said['taskptq.preprocessing'])
    assert resized['step'] == 'resize'
    assert normal['channels'] == 'rgb'
    image = cv2.imread(picture)
    pixels = cv2.resize(image, (width, height))[..., ::-1].astype(np.float32)
    pixels = (pixels - np.float32(normal['mean'])) / np.float32(normal['std'])
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    logits = session.run(None, {'images': images})[0][0].transpose(1, 2, 0)
    labels = cv2.resize(logits, image.shape[1::-1]).argmax(axis=2)
    cv2.imwrite(out, labels.astype(np.uint8))
    for label, name in enumerate(json.loads(said['taskptq.classes'])):
        print(f'{name:16} {(labels == label).mean():.3f}')


if __name__ == '__main__':
    main(*sys.argv[1:])
