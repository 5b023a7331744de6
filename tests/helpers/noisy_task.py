"""A task of a few hundred weights on drawn JPEG files, for noises."""

from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from PIL import Image
from torch import nn
from torch.nn import functional as F

COUNT = 5


def draw_files(folder):
    """Draw colored blocks, with chroma at half resolution."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        blocks = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = blocks.repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(image).save(
            folder / f'{number}.jpg', quality=90, subsampling=2
        )


@DATASETS.register_module(force=True)
class DrawnDataset(BaseDataset):
    def load_data_list(self):
        files = sorted(Path(self.data_root).glob('*.jpg'))
        return [
            {'img_path': str(file), 'label': number % 3}
            for number, file in enumerate(files)
        ]


@TRANSFORMS.register_module(force=True)
class DrawnAnnotations:
    def __call__(self, results):
        return {**results, 'gt': results['label']}


@TRANSFORMS.register_module(force=True)
class DrawnPack:
    def __call__(self, results):
        image = torch.from_numpy(results['img'].copy()).movedim(-1, 0)
        return {'inputs': image, 'data_samples': results.get('gt', -1)}


@MODELS.register_module(force=True)
class DrawnNet(BaseModel):
    def __init__(self, *, pool_stride=2):
        super().__init__(
            data_preprocessor=ImgDataPreprocessor(
                mean=[120.0] * 3, std=[60.0] * 3
            )
        )
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(3, pool_stride, 1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.pool(F.relu(self.stem(inputs)))
        x = F.interpolate(F.relu(self.body(x)), scale_factor=2)
        logits = self.head(x).square().mean(dim=(2, 3))
        if mode == 'loss':
            return {
                'loss': F.cross_entropy(logits, torch.tensor(data_samples))
            }
        if mode == 'predict':
            rows = zip(logits.softmax(dim=1), data_samples, strict=True)
            return [{'share': s[n]} for s, n in rows]
        return logits


@METRICS.register_module(force=True)
class DrawnMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample['share']) for sample in data_samples]

    def compute_metrics(self, results):
        return {'mShare': 100 * sum(results) / len(results)}


CONFIG = """
custom_imports = dict(imports=['noisy_task'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='DrawnNet', pool_stride={stride})
dataset = dict(
    type='DrawnDataset',
    data_root={folder!r},
    test_mode=True,
    pipeline=[
        dict(type='mmcv.LoadImageFromFile'),
        dict(type='mmcv.Resize', scale=(24, 20)),
        dict(type='DrawnAnnotations'),
        dict(type='DrawnPack'),
    ],
)
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset,
)
test_evaluator = dict(type='DrawnMetric')
test_cfg = dict()
default_hooks = dict(logger=None, checkpoint=None)
log_level = 'WARNING'
"""


class NoisyTask:
    """Files of the task: images, config, float and quantized checkpoint."""

    def __init__(self, folder, *, stride=2):
        from taskptq import apis
        from taskptq.engine import PTQHook  # noqa: F401 - registers

        draw_files(folder / 'images')
        draw_files(folder / 'train')
        self.config = folder / 'config.py'
        self.config.write_text(
            CONFIG.format(stride=stride, folder=str(folder / 'images'))
        )
        torch.manual_seed(2)
        self.float = folder / 'float.pth'
        model = DrawnNet(pool_stride=stride)
        with torch.no_grad():
            model.head.weight.mul_(4)
        torch.save({'state_dict': model.state_dict()}, self.float)
        self.quantized = folder / 'net_w4a8.pth'
        config = apis.read_config(self.config)
        config.train_dataloader = {
            'dataset': {**config.dataset, 'data_root': str(folder / 'train')}
        }
        apis.quantize(
            config,
            self.float,
            recipe='w4a8_minmax',
            calibration=dict(num_images=4),
            out=self.quantized,
        )
