"""Quantized checkpoints on disk: whole or absent, read without code."""

import io
import zipfile

import pytest
import torch
from saved_nets import Net, payload_of, quantized_net, scheme

from taskptq.export import (
    QuantizedCheckpointError,
    load,
    save,
    unpack_model,
)


@pytest.mark.parametrize('share', [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / 'q.pth'
    save(payload_of(quantized_net()), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(QuantizedCheckpointError, match='truncated'):
        load(path)


def test_text_file_and_foreign_zip_are_refused(tmp_path):
    path = tmp_path / 'q.pth'
    path.write_text('hello')
    with pytest.raises(QuantizedCheckpointError, match='not a quantized'):
        load(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.txt', 'hello')
    with pytest.raises(QuantizedCheckpointError, match='damaged'):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / 'none.pth')


RAN = []


class Strange:
    def __reduce__(self):
        return RAN.append, (1,)


def test_strange_objects_are_refused_and_never_run(tmp_path):
    payload = payload_of(quantized_net())
    payload['meta'] = {'x': Strange()}
    torch.save(payload, tmp_path / 'q.pth')
    with pytest.raises(QuantizedCheckpointError, match='other than tensors'):
        load(tmp_path / 'q.pth')
    assert not RAN


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / 'sub' / 'q.pth'
    payload = payload_of(quantized_net())
    save(payload, path)
    before = path.read_bytes()
    payload['meta'] = {'x': lambda: None}
    with pytest.raises(QuantizedCheckpointError, match='not plain data'):
        save(payload, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['q.pth']


def test_payload_round_trips_through_a_buffer():
    payload = payload_of(quantized_net())
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    other = Net(scheme(), seed=1).eval()
    unpack_model(loaded, other)
    assert payload_of(other)['digest'] == payload['digest']
