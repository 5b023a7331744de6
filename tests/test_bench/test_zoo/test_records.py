"""Records of the zoo's files."""

from taskptq.bench.zoo.records import (
    is_outdated,
    load_records,
    publish,
    put_record,
)


def test_records_are_added_in_order_and_replaced(tmp_path):
    path = tmp_path / 'new' / 'zoo.json'
    assert load_records(path) == {}
    put_record('b', {'value': 1.0}, path=path)
    put_record('a', {'value': 2.0}, path=path)
    put_record('b', {'value': 3.0}, path=path)
    found = load_records(path)
    assert list(found) == ['a', 'b']
    assert found['b'] == {'value': 3.0}


def test_a_record_of_other_settings_is_outdated(zoo_files):
    first, second = zoo_files
    assert not is_outdated(first, {**first.settings(), 'value': 0.3})
    assert is_outdated(second, {**first.settings(), 'value': 0.3})


def test_a_file_is_published_into_a_new_folder(tmp_path):
    source, target = tmp_path / 'a', tmp_path / 'new' / 'b'
    source.write_bytes(b'codes')
    publish(source, target)
    assert target.read_bytes() == source.read_bytes() == b'codes'
