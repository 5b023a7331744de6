import pytest

from taskptq.analysis.sensitivity.state import MeasuredState


def fail():
    pytest.fail('measured again')


def test_numbers_survive(tmp_path):
    path = tmp_path / 'new' / 'state.json'
    state = MeasuredState(path, owner={'recipe': 'a', 'bits': (4, 8)})
    assert state.get('x', lambda: 2) == 2
    again = MeasuredState(path, owner={'recipe': 'a', 'bits': (4, 8)})
    assert again.get('x', fail) == 2
    again.remove()
    assert not path.exists()


def test_numbers_of_others_are_dropped(tmp_path):
    path = tmp_path / 'state.json'
    MeasuredState(path, owner={'recipe': 'a'}).get('x', lambda: 2)
    other = MeasuredState(path, owner={'recipe': 'b'})
    assert other.get('x', lambda: 3) == 3


@pytest.mark.parametrize(
    'text',
    ['', '[1]', '{"of": {}}', '{"of": {}, "values": {"x": "2", "y": NaN}}'],
)
def test_unreadable_files_are_started_anew(tmp_path, text):
    path = tmp_path / 'state.json'
    path.write_text(text)
    assert MeasuredState(path).values == {}
