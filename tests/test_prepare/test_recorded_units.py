"""The models of our tables are split into the same units as ever."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmengine.registry import DefaultScope, init_default_scope
from recorded_units import check_units, read_record

RECORD = read_record(Path(__file__).parent)


@pytest.fixture(autouse=True)
def host_scope():
    """Restore mmengine's default scope after the test."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.mark.parametrize('config', RECORD)
def test_units_are_as_recorded(config: str) -> None:
    check_units(config, RECORD[config])
