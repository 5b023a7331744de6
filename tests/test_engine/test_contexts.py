"""Seeds and logs are as they were after a quantization."""

import contextlib
import logging

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.logging import MMLogger

from taskptq.engine.contexts import seeded, shared_log


def test_generator_is_restored_even_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with contextlib.suppress(ValueError), seeded(7):
        first = torch.rand(2)
        raise ValueError
    assert torch.equal(torch.rand(2), expected)
    with seeded(7):
        assert torch.equal(torch.rand(2), first)
    with seeded(8):
        assert not torch.equal(torch.rand(2), first)


def test_logs_go_to_the_runs_own_logger(caplog):
    lower = logging.getLogger('taskptq')
    before = lower.handlers, lower.level, lower.propagate
    target = MMLogger.get_current_instance()
    target.addHandler(caplog.handler)
    try:
        with contextlib.suppress(ValueError), shared_log():
            logging.getLogger('taskptq').error('a line of a lower layer')
            assert lower.level == (target.level or logging.INFO)
            raise ValueError
    finally:
        target.removeHandler(caplog.handler)
    lines = [r.getMessage() for r in caplog.records]
    assert lines.count('a line of a lower layer') == 1
    assert (lower.handlers, lower.level, lower.propagate) == before


def test_lines_are_shown_by_a_logger_without_a_level():
    target = MMLogger.get_current_instance()
    before, target.level = target.level, logging.NOTSET
    try:
        with shared_log():
            assert logging.getLogger('taskptq').isEnabledFor(logging.INFO)
    finally:
        target.setLevel(before)
