"""Configs in import style are written with their classes as imports."""

import importlib

import pytest
from mmengine.config import Config

from taskptq.engine.import_style import (
    import_style_text,
    lazy_settings,
    type_name,
)

pytest.importorskip('mmcv')

BASE = """
from mmengine.dataset import DefaultSampler

limit = float('inf')
loader = dict(sampler=dict(type=DefaultSampler, shuffle=False), sizes=(1, ))
"""
CONFIG = """
from collections import OrderedDict
from mmengine.config import read_base

with read_base():
    from .base import *

import torch.nn as nn
import mmengine.hooks
from mmcv.ops import nms
from mmengine.hooks import EMAHook
from mmengine.model import BaseModule
from mmengine.model import BaseModel as Model

nested = dict(nms=dict(type=nms, iou_threshold=0.5), act=nn.ReLU,
              made=OrderedDict)
model = dict(type=Model, init_cfg=None, parts=[dict(type=BaseModule), 'a'])
loader.update(workers=2)
custom_hooks = [dict(type=EMAHook), dict(type=mmengine.hooks.IterTimerHook)]
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    path = tmp_path / 'lazy.py'
    path.write_text(CONFIG)
    return path


def test_written_config_is_the_same(source, tmp_path):
    import mmcv.ops
    from torch import nn

    cfg = Config.fromfile(source)
    path = tmp_path / 'elsewhere' / 'q.py'
    path.parent.mkdir()
    path.write_text(import_style_text(lazy_settings(cfg)))
    written = Config.fromfile(path)
    assert written.to_dict() == cfg.to_dict()
    assert written.nested.nms.type is mmcv.ops.nms
    assert written.nested.act is nn.ReLU
    assert written.loader.sampler.type is cfg.loader.sampler.type
    assert written.loader.sizes == (1,)
    assert written.model.type is cfg.model.type
    assert [hook.type for hook in written.custom_hooks] == [
        hook.type for hook in cfg.custom_hooks
    ]


def test_overrides_and_names_that_are_taken(source, tmp_path):
    from torch import nn

    cfg = Config.fromfile(source)
    cfg.merge_from_dict(
        {'nested.nms.iou_threshold': 0.7, 'ReLU': 3, 'nested.act': nn.ReLU}
    )
    path = tmp_path / 'q.py'
    path.write_text(import_style_text(lazy_settings(cfg)))
    written = Config.fromfile(path)
    assert written.nested.nms.iou_threshold == 0.7
    assert (written.ReLU, written.nested.act) == (3, nn.ReLU)


def test_what_is_no_source_is_named():
    with pytest.raises(ValueError, match=r'model\.scale\[1\] is a object'):
        import_style_text({'model': {'scale': [1, object()]}})
    with pytest.raises(ValueError, match='model is a function'):
        import_style_text({'model': lambda x: x})


def test_type_name():
    assert type_name('taskptq.PTQHook') == 'PTQHook'
    assert type_name(Config) == 'Config'


@pytest.fixture
def tool(repo_root):
    module = importlib.import_module('taskptq.cli.quantize')
    return module


def test_quantize_replaces_hooks(tool, source, tmp_path):
    out = tmp_path / 'q.py'
    out.write_text(
        tool.config_text(
            Config.fromfile(source),
            source=str(source),
            out=out,
            hook={'type': 'taskptq.PTQHook', 'seed': 0},
            overridden=False,
        )
    )
    kinds = [type_name(h.type) for h in Config.fromfile(out).custom_hooks]
    assert kinds == ['IterTimerHook', 'PTQHook']


def test_configs_of_packages_are_inherited(tool, tmp_path):
    text = tool.config_text(
        Config({'a': 1}),
        source='mmdet::a/b.py',
        out=tmp_path / 'q.py',
        hook={'type': 'taskptq.PTQHook'},
        overridden=False,
    )
    assert text.startswith("_base_ = ['mmdet::a/b.py']\n")
