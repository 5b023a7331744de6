"""A task of a few thousand weights, named by configs through custom_imports.

Its images are drawn from their paths, so nothing lies on disk.
"""

import time
import zlib

import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from torch import nn
from torch.nn import functional

from taskptq.reconstruction.resume import UnitStates


@MODELS.register_module(force=True)
class TinyNet(BaseModel):
    def __init__(self, *, width=8, **kwargs):
        super().__init__(**kwargs)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = torch.stack(list(inputs)) if isinstance(inputs, list) else inputs
        x = functional.relu(self.bn1(self.stem(x)))
        logits = self.head(self.body(x).amax(dim=(2, 3)))
        if mode == 'loss':
            target = torch.as_tensor(labels)
            return {'loss': functional.cross_entropy(logits, target)}
        if mode == 'predict':
            return [{'logits': row} for row in logits]
        return logits


@DATASETS.register_module(force=True)
class TinyDataset(BaseDataset):
    def __init__(self, *, first=0, length=12, empty=0, **kwargs):
        self.first, self.length, self.empty = first, length, empty
        super().__init__(**kwargs)

    def load_data_list(self):
        return [
            {
                'img_path': f'tiny/{self.first + i}.png',
                'label': i % 4,
                'empty': i < self.empty,
            }
            for i in range(self.length)
        ]

    def filter_data(self):
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty'):
            return self.data_list
        return [info for info in self.data_list if not info['empty']]


@DATASETS.register_module(force=True)
class TinyMix:
    """Like mmdet's MultiImageMixDataset: a wrapper with its own pipeline."""

    def __init__(self, *, dataset, pipeline):
        raise AssertionError('calibration must not build a mixing wrapper')


@TRANSFORMS.register_module(force=True)
class TinyLoad:
    def __call__(self, results):
        seed = zlib.crc32(results['img_path'].encode())
        generator = torch.Generator().manual_seed(seed)
        return {**results, 'img': torch.randn(3, 8, 8, generator=generator)}


@TRANSFORMS.register_module(force=True)
class TinyLoadAnnotations:
    def __call__(self, results):
        return {**results, 'gt': results['label']}


@TRANSFORMS.register_module(force=True)
class TinyPack:
    def __init__(self, *, needs_labels=False):
        self.needs_labels = needs_labels

    def __call__(self, results):
        label = results['gt'] if self.needs_labels else results.get('gt', -1)
        return {'inputs': results['img'], 'labels': label}


@TRANSFORMS.register_module(force=True)
class TinyNoise:
    """A training transform; calibration must not run it."""

    def __call__(self, results):
        raise AssertionError('the training pipeline ran')


@METRICS.register_module(force=True)
class TinyMetric(BaseMetric):
    """Keeps what was predicted, for tests to compare."""

    predictions = None

    def process(self, data_batch, data_samples):
        self.results += [sample['logits'].cpu() for sample in data_samples]

    def compute_metrics(self, results):
        type(self).predictions = torch.stack(results)
        return {'mean': float(torch.stack(results).mean())}


@HOOKS.register_module(force=True)
class TinyWitness(Hook):
    """Saves the state with which each rank evaluated."""

    def after_test(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        torch.save(
            model.state_dict(), f'{runner.work_dir}/rank{get_rank()}.pth'
        )


@HOOKS.register_module(force=True)
class TinySlowRank(Hook):
    """Rank 1 takes its time over the file of each finished unit."""

    def before_run(self, runner):
        if get_rank() != 1:
            return
        path_of = UnitStates._path

        def path_late(self, index):
            time.sleep(0.5)
            return path_of(self, index)

        UnitStates._path = path_late
