"""A fixture for tests that register classes."""

from collections.abc import Iterator

import pytest

from taskptq.hosts import registry


@pytest.fixture
def restored_tables() -> Iterator[None]:
    """Put the tables back after the test."""
    tables = {
        name: table.copy()
        for name, table in vars(registry).items()
        if name.isupper() and isinstance(table, (dict, set))
    }
    assert len(tables) >= 12
    yield
    for name, before in tables.items():
        table = getattr(registry, name)
        table.clear()
        table.update(before)
