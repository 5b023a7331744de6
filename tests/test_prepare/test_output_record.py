import pytest

from taskptq.prepare.decisions import Decisions
from taskptq.prepare.output_record import read_output_grids

GRID = {'modules': ['a'], 'replaced': ['b.input_quantizer']}


def test_decisions_keep_them_and_files_without_them_are_read():
    decisions = Decisions(outputs=(GRID,))
    assert Decisions.from_dict(decisions.to_dict()) == decisions
    plain = Decisions().to_dict()
    assert 'outputs' not in plain
    assert Decisions.from_dict(plain).outputs == ()


@pytest.mark.parametrize(
    'entry',
    [
        {'modules': ['a']},
        {**GRID, 'more': []},
        {**GRID, 'modules': 'a'},
        {**GRID, 'replaced': [1]},
        ['a'],
    ],
)
def test_anything_else_is_refused(entry):
    with pytest.raises(ValueError, match='outputs'):
        read_output_grids([entry])
