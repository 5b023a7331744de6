"""The models of this project are split into the same units as ever."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from recorded_units import check_units, read_record

RECORD = read_record(Path(__file__).parent)


@pytest.mark.parametrize('config', RECORD)
def test_units_are_as_recorded(config: str) -> None:
    check_units(config, RECORD[config])
