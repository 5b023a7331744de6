"""Models of the hosts' configs, without downloads, and a way to run them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskptq.apis import build_model
from taskptq.robustness.touched import replaced

# Keys of settings that name weights to download.
DOWNLOADS = ('init_cfg', 'pretrained', 'load_from', 'teacher_ckpt')
# Random weights score everything alike: let some objects reach the second
# stages and the masks, and not too many.
FEW = {
    'score_thr': 0.0,
    'mask_thr': 0.0,
    'filter_thr': 0.0,
    'max_per_img': 4,
    'max_num': 4,
    'nms_pre': 100,
}
# The most of what makes models large and leaves their mechanisms alone.
MOST = {
    'fc_out_channels': 128,
    'num_queries': 40,
    'num_query': 40,
    'num_proposals': 40,
}


def build_offline(
    config: Config,
    *,
    size: Sequence[int],
    seed: int = 0,
    full: bool = False,
) -> nn.Module:
    """Build the model of a config with random weights, in eval mode.

    BatchNorms get the statistics of one drawn image: fresh ones would fold
    to nothing, and let values grow from layer to layer.

    Args:
        config: Config of a host.
        size: Height and width of the images it will see.
        seed: Seed of all numbers.
        full: Whether to let the host draw the weights, and to keep the
            numbers of its objects and queries: which takes longer. Else
            layers keep the weights that they were made with.

    Raises:
        ValueError: If the config has no model.
    """
    if 'model' not in config:
        raise ValueError('the config has no model')
    plain = at_size(without_downloads(config.model.to_dict()), size)
    if not full:
        plain = with_few_objects(thinner(plain))
    settings = {
        'model': plain,
        'default_scope': config.get('default_scope', 'mmengine'),
    }
    torch.manual_seed(seed)
    model = build_model(Config(settings))
    if full:
        model.init_weights()
    if hasattr(model, 'tracker') and hasattr(model, 'detector'):
        # What tracks is no network; what it tracks comes from this one.
        model = model.detector.eval()
    model.requires_grad_(False)
    handles = [
        module.register_forward_pre_hook(_take_statistics)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    ]
    with torch.no_grad():
        predict(model, drawn_batch(model, size=size, seed=seed + 1))
    for handle in handles:
        handle.remove()
    return model


def _take_statistics(norm: Any, args: Any) -> None:
    """Give a norm the statistics of its input, if it has any to speak of."""
    x = args[0].transpose(0, 1).flatten(1)
    if x.shape[1] > 1:
        var = x.var(1)
        norm.running_mean.copy_(x.mean(1))
        # A channel that hardly varies on one image would amplify rounding.
        norm.running_var.copy_(var.clamp_min(0.1 * var.mean()) + norm.eps)


def without_downloads(settings: Any) -> Any:
    """Return settings in which no weights and no other processes are named.

    Args:
        settings: Nested dicts, lists and tuples.

    >>> without_downloads({'init_cfg': {'type': 'Pretrained'}, 'depth': 18})
    {'init_cfg': None, 'depth': 18}
    """
    if isinstance(settings, Mapping):
        return {
            key: _nothing(value)
            if key in DOWNLOADS
            # The norm of several processes cannot even be built in one.
            else 'BN'
            if value == 'MMSyncBN'
            else without_downloads(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(without_downloads(item) for item in settings)
    return settings


def _nothing(value: Any) -> bool | None:
    return False if isinstance(value, bool) else None


def at_size(settings: Any, size: Sequence[int]) -> Any:
    """Return settings for images of a size, where they depend on it.

    >>> at_size({'backbone': {'img_size': 640}}, (96, 128))
    {'backbone': {'img_size': (96, 128)}}

    Args:
        settings: Nested dicts and lists.
        size: Height and width.
    """
    if isinstance(settings, Mapping):
        return {
            key: tuple(size) if key == 'img_size' else at_size(value, size)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(at_size(item, size) for item in settings)
    return settings


def thinner(settings: Any) -> Any:
    """Return settings with fewer queries and channels of linear layers.

    >>> thinner({'bbox_head': {'num_queries': 900}})
    {'bbox_head': {'num_queries': 40}}

    Args:
        settings: Nested dicts and lists.
    """
    if isinstance(settings, Mapping):
        return {
            key: min(value, MOST[key])
            if key in MOST and isinstance(value, int)
            else thinner(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(thinner(item) for item in settings)
    return settings


def with_few_objects(settings: Any) -> Any:
    """Return test settings in which any score passes, a few times.

    Args:
        settings: A detector's ``test_cfg``.

    >>> with_few_objects({'rcnn': {'score_thr': 0.05, 'max_per_img': 40}})
    {'rcnn': {'score_thr': 0.0, 'max_per_img': 4}}
    """
    if isinstance(settings, Mapping):
        return {
            key: FEW[key] if key in FEW else with_few_objects(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(with_few_objects(item) for item in settings)
    return settings


def drawn_batch(
    model: nn.Module, *, size: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Return one drawn image as the model's ``forward`` takes it.

    Args:
        model: Model of mmdet or mmseg.
        size: Height and width.
        seed: Seed of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    # Smooth, as images are: noise would average out in the first strides.
    coarse = torch.randn(1, 3, *(n // 8 for n in size), generator=generator)
    image = nn.functional.interpolate(
        coarse, size=tuple(size), mode='bilinear'
    )
    meta = {
        'img_shape': tuple(size),
        'ori_shape': tuple(size),
        'pad_shape': tuple(size),
        'batch_input_shape': tuple(size),
        'scale_factor': (1.0, 1.0),
        'padding_size': [0, 0, 0, 0],
        'flip': False,
        'img_id': 0,
    }
    return {
        'inputs': image,
        'meta': meta,
        'sample': _sample_of(model),
        'boxes': None if getattr(model, 'with_rpn', True) else _boxes(size),
    }


def _boxes(size: Sequence[int]) -> Tensor:
    """Return some boxes (4, 4) for a model that proposes none itself."""
    height, width = size
    corners = torch.tensor(
        [
            [0.0, 0.0, 0.5, 0.5],
            [0.2, 0.3, 0.9, 0.8],
            [0.5, 0.0, 1.0, 1.0],
            [0.1, 0.6, 0.4, 0.9],
        ]
    )
    return corners * torch.tensor([width, height, width, height])


def _sample_of(model: nn.Module) -> str:
    package = type(model).__module__.partition('.')[0]
    return 'mmseg' if package == 'mmseg' else 'mmdet'


def predict(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Run a model as its host's test loop does, seeded.

    Args:
        model: Model of mmdet or mmseg.
        batch: From :func:`drawn_batch`.
    """
    # Some hosts draw numbers in evaluation as well.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(
            batch['inputs'].clone(), [_data_sample(batch)], mode='predict'
        )


def _data_sample(batch: Mapping[str, Any]) -> Any:
    if batch['sample'] == 'mmseg':
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo=batch['meta'])
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=batch['meta'])
    if batch['boxes'] is not None:
        from mmengine.structures import InstanceData

        boxes = batch['boxes'].to(batch['inputs'])
        sample.proposals = InstanceData(
            bboxes=boxes, scores=boxes.new_ones(len(boxes))
        )
    return sample


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute in float64 all that a host does not insist to do in float32.

    mmcv's non-maximum suppression knows float32 only: it gets such copies.
    Sampling refuses masks that mmdet has made float32: it gets both in double.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _single_nms(), _double_sampling():
            yield
    finally:
        torch.set_default_dtype(usual)


@contextmanager
def _single_nms() -> Iterator[None]:
    module = sys.modules.get('mmcv.ops.nms')
    if module is None:
        yield
        return
    own: Any = module.ext_module.nms

    def nms(boxes: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        return own(boxes.float(), scores.float(), **kwargs)

    with replaced(module.ext_module, 'nms', nms):
        yield


@contextmanager
def _double_sampling() -> Iterator[None]:
    own = nn.functional.grid_sample

    def grid_sample(x: Tensor, grid: Tensor, *args: Any, **kw: Any) -> Any:
        return own(x.double(), grid.double(), *args, **kw)

    with replaced(nn.functional, 'grid_sample', grid_sample):
        yield


def output_tensors(model: nn.Module, batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the raw outputs of a model's heads; its predictions if none.

    Args:
        model: Model of mmdet or mmseg.
        batch: From :func:`drawn_batch`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            out = model(
                batch['inputs'].clone(), [_data_sample(batch)], mode='tensor'
            )
        except (
            AttributeError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            out = predict(model, batch)
    return [x for x in _tensors(out) if x.is_floating_point()]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, 'all_items'):
        for _, item in value.all_items():
            yield from _tensors(item)
