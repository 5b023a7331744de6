"""Reconstruction units as they were recorded for the models of our tables.

What a unit is decides what its layers are trained on, so that the packed
weights of a model stay the same only while its units do. A record holds the
units in order, and how often a forward pass over one image of the data set
calls each module that holds layers, unless that is once.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from taskptq.apis import build_model, load_config
from taskptq.modules import QuantModule
from taskptq.prepare import QConfig, prepare, split_blocks

ROOT = Path(__file__).resolve().parents[2]


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record in a folder of tests: config -> units and calls."""
    return json.loads((folder / 'units.json').read_text(encoding='utf-8'))


def holds_layers(module: nn.Module) -> bool:
    return any(isinstance(child, QuantModule) for child in module.modules())


def check_units(config: str, record: dict[str, Any]) -> None:
    """Compare the units of a config's model with their record."""
    model = build_model(load_config(str(ROOT / config)))
    prepare(model, QConfig.from_dict({}))
    names = {name for name, m in model.named_modules() if holds_layers(m)}
    assert set(record['calls']) <= names
    calls = {name: record['calls'].get(name, 1) for name in names}
    called = {name: count for name, count in calls.items() if count}
    units = split_blocks(model, callable_names=called)
    assert [unit.name for unit in units] == record['units']
