"""Structures of files are repeated, or refused by name."""

import pytest
from torch import nn

from taskptq.methods.rewriting.replay import replay, structures


def test_only_structural_reports_count():
    reports = [
        {'rewrite': 'AttentionCentering', 'entries': []},
        {'rewrite': 'ChannelScale', 'structure': {'layers': ['a']}},
        'a report of another kind',
        {'rewrite': 'ChannelScale', 'structure': {}},
    ]
    assert structures(reports) == [
        {'rewrite': 'ChannelScale', 'layers': ['a']}
    ]


def test_files_without_any():
    model = nn.Sequential(nn.Linear(2, 2))
    replay(model, None)
    replay(model, [])
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'rewrite': 'ChannelScale'}, 'is not a list'),
        (['ChannelScale'], 'something but dicts'),
        ([{'rewrite': 3}], "names '3'"),
        ([{}], "names 'None'"),
        ([{'rewrite': 'os.system'}], "names 'os.system'"),
        ([{'rewrite': 'AttentionCentering'}], "names 'AttentionCentering'"),
    ],
)
def test_what_cannot_be_repeated(changes, reason):
    with pytest.raises(ValueError, match=reason):
        replay(nn.Sequential(nn.Linear(2, 2)), changes)
