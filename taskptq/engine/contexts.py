"""Contexts of a quantization: seeding and logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import MMLogger

__all__ = ['seeded', 'shared_log']


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the context and restore its generators afterwards."""
    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def shared_log() -> Iterator[None]:
    """Send the logs of the lower layers to mmengine's current logger."""
    target = MMLogger.get_current_instance()
    lower = logging.getLogger('taskptq')
    before = lower.handlers, lower.level, lower.propagate
    lower.handlers = list(target.handlers)
    # An mmengine logger without a level of its own logs everything.
    lower.setLevel(target.level or logging.INFO)
    lower.propagate = False
    try:
        yield
    finally:
        lower.handlers, level, lower.propagate = before
        lower.setLevel(level)
