"""Markers of trained models: their tables are looked up by name."""

import pytest

from taskptq.bench.training_markers import MARKED, update_training_text


def test_table_that_is_not_there_is_named(tmp_path):
    text = '<!-- training:unknown -->\nold\n<!-- /training -->'
    with pytest.raises(ValueError, match='unknown'):
        update_training_text(text, tmp_path, [], {})


def test_losses_of_unknown_tables_are_named(tmp_path):
    text = '<!-- losses:one other AP75 -->\n<!-- /losses -->'
    with pytest.raises(ValueError, match="'one'"):
        update_training_text(text, tmp_path, [], {})


def test_marker_ends_with_its_own_kind():
    text = (
        '<!-- training:a -->\nx\n<!-- /losses -->\n<!-- /training -->'
        '<!-- losses:b c d -->\n<!-- /losses -->'
    )
    found = [(m[2], m[3], m[4].split()) for m in MARKED.finditer(text)]
    assert found == [('training', 'a', []), ('losses', 'b', ['c', 'd'])]
