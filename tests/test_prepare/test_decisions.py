"""Decisions: plain data that a stranger may have written, and what they do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from taskptq.prepare import Decisions, QConfig, fuse_batchnorm, prepare
from taskptq.prepare.decisions import MAX_CHARACTERS, MAX_ENTRIES
from taskptq.testing import tiny_batches, tiny_model

W4 = QConfig.from_dict(
    {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}
)


DECISIONS = Decisions(
    folded=(('conv', 'bn'), ('a.0', 'a.1')),
    baked=('conv',),
    untied=('fc.weight',),
    left_float={'head': 'differs'},
    kept_norms={'last': 'follows nothing'},
)


def test_round_trip_through_json() -> None:
    plain = json.loads(json.dumps(DECISIONS.to_dict()))
    assert Decisions.from_dict(plain) == DECISIONS
    assert Decisions.from_dict(Decisions().to_dict()) == Decisions()


LONG = 'x' * (MAX_CHARACTERS + 1)


BAD: dict[str, dict[str, Any]] = {
    'folded is a dict': {'folded': {}},
    'folded is text': {'folded': 'ab'},
    'pair of three': {'folded': [['a', 'b', 'c']]},
    'pair of text': {'folded': ['ab']},
    'pair of numbers': {'folded': [[1, 2]]},
    'layer twice': {'folded': [['a', 'b'], ['a', 'c']]},
    'norm twice': {'folded': [['a', 'b'], ['c', 'b']]},
    'too many': {'folded': [['a', 'b']] * (MAX_ENTRIES + 1)},
    'baked is None': {'baked': None},
    'baked number': {'baked': [3]},
    'baked nested': {'baked': [['a']]},
    'baked twice': {'baked': ['a', 'a']},
    'untied long': {'untied': [LONG]},
    'untied dict': {'untied': {'a': 'b'}},
    'float list': {'left_float': ['a']},
    'float number': {'left_float': {'a': 1}},
    'float key': {'left_float': {1: 'a'}},
    'kept long': {'kept_norms': {'a': LONG}},
    'kept tensor': {'kept_norms': {'a': torch.zeros(2)}},
    'unknown key': {'more': []},
}


@pytest.mark.parametrize('kind', BAD)
def test_impossible_content_is_one_sentence(kind: str) -> None:
    content = {**Decisions().to_dict(), **BAD[kind]}
    with pytest.raises(ValueError, match=r'^decisions[ .]') as error:
        Decisions.from_dict(content)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize('content', [None, [], 'text', {}, {'folded': []}])
def test_impossible_container(content: object) -> None:
    with pytest.raises(ValueError, match=r'decisions must be a dict'):
        Decisions.from_dict(content)


def test_older_files_show_what_was_folded_by_what_they_lack() -> None:
    model = tiny_model('conv')
    fuse_batchnorm(
        model,
        [
            ('layer1.conv1', 'layer1.bn1'),
            ('layer2.shortcut.0', 'layer2.shortcut.1'),
        ],
    )
    stored = set(model.state_dict())
    decisions = Decisions.inferred(tiny_model('conv'), stored)
    assert decisions.folded == (
        ('layer1.conv1', 'layer1.bn1'),
        ('layer2.shortcut.0', 'layer2.shortcut.1'),
    )
    fresh = tiny_model('conv')
    prepare(fresh, W4, decisions=decisions)
    quantizers = {k for k in fresh.state_dict() if '_quantizer' in k}
    assert fresh.state_dict().keys() - quantizers == stored


def test_older_files_were_folded_by_names() -> None:
    # What no class guarantees was folded then, and must be again.
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 3, 1)
            self.bn1 = nn.SyncBatchNorm(3)

    kept = set(Block().state_dict())
    gone = {name for name in kept if not name.startswith('bn1.')}
    assert Decisions.inferred(Block(), gone).folded == (('conv1', 'bn1'),)
    assert Decisions.inferred(Block(), kept).folded == ()


def test_report_carries_the_decisions() -> None:
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    report = prepare(model, W4, batch=x)
    assert [norm for _, norm in report.decisions.folded] == report.folded
    without = prepare(tiny_model('conv'), W4)
    assert without.decisions.kept_norms.keys() == {'stem_bn'}
