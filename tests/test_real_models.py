"""What holds on models whose training was not ours."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
YOLOX = 'configs/yolox/yolox_nano_coco-mini.py'


def images(count: int, *, size: int = 224) -> list[torch.Tensor]:
    """Photographs as YOLOX reads them: BGR, 0 to 255, padded with 114."""
    import cv2
    import numpy as np

    found = []
    for path in sorted((ROOT / 'data/coco_mini/images').glob('*.jpg'))[:count]:
        image = cv2.imread(str(path))
        ratio = size / max(image.shape[:2])
        image = cv2.resize(image, None, fx=ratio, fy=ratio)[:size, :size]
        canvas = np.full((size, size, 3), 114, dtype=np.float32)
        canvas[: image.shape[0], : image.shape[1]] = image
        found.append(torch.from_numpy(canvas).permute(2, 0, 1)[None])
    return found


def outputs(model: torch.nn.Module, batches: list) -> torch.Tensor:
    """Logits, boxes and objectness of all levels, one after another."""
    with torch.no_grad():
        return torch.cat(
            [
                level.flatten()
                for batch in batches
                for kind in model(batch)
                for level in kind
            ]
        )


@pytest.mark.slow
@pytest.mark.data('coco_mini', 'weights')
def test_yolox_needs_scales_per_channel_on_depthwise_inputs(registry_guard):
    """Signal to noise of the heads, at the recipes that differ in this."""
    import taskptq
    from taskptq.apis import build_model, load_config

    seen = images(4)
    noise = {}
    for recipe in ('float', 'w8a8_minmax', 'w8a8_minmax-depthwise', 'w8a8'):
        model = build_model(load_config(ROOT / YOLOX)).eval()
        state = torch.load(
            ROOT / 'data/weights/yolox_nano_coco.pth', weights_only=True
        )
        model.load_state_dict(state.get('state_dict', state))
        if recipe == 'float':
            expected = outputs(model, seen[2:])
            continue
        model, _ = taskptq.quantize(
            model, seen[:2], recipe=recipe, forward=lambda m, x: m(x)
        )
        error = outputs(model, seen[2:]) - expected
        ratio = expected.square().sum() / error.square().sum()
        noise[recipe] = float(10 * ratio.log10())
    # In decibels: the noise halves at least.
    assert noise['w8a8_minmax-depthwise'] > noise['w8a8_minmax'] + 3
    assert noise['w8a8'] > noise['w8a8_minmax'] + 3
