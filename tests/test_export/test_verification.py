"""Verified once; a change after that is found."""

import copy

import pytest
import torch

from taskptq.export import (
    QuantizedCheckpointError,
    load,
    save,
    unpack_model,
    verify,
)
from taskptq.export.schema import compute_digest
from taskptq.export.verification import VerifiedPayload


def refused(payload, match):
    with pytest.raises(QuantizedCheckpointError, match=match) as caught:
        verify(payload)
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 500


def test_digest_is_computed_once(payload, monkeypatch, tmp_path, new_net):
    from taskptq.export import verification

    calls = []

    def counted(value):
        calls.append(value)
        return compute_digest(value)

    monkeypatch.setattr(verification, 'compute_digest', counted)
    save(payload, tmp_path / 'q.pth')
    loaded = load(tmp_path / 'q.pth')
    assert isinstance(loaded, VerifiedPayload)
    assert verify(loaded) is loaded
    unpack_model(loaded, new_net())
    assert len(calls) == 1
    verify(dict(loaded))
    assert len(calls) == 2
    verify(copy.deepcopy(loaded))
    assert len(calls) == 3


@pytest.mark.parametrize(
    'change',
    [
        lambda p: p['float']['one.bias'].add_(1),
        lambda p: p['quantizers'].update(
            {'one.weight_quantizer.scale': torch.ones(8)}
        ),
        lambda p: p['weights']['one.weight']['packed'].fill_(0),
        lambda p: p['meta'].update(classes=['b']),
        lambda p: p['structure'].clear(),
        lambda p: p.update(digest='0' * 64),
    ],
)
def test_a_change_after_the_check_is_found(tmp_path, payload, change):
    save(payload, tmp_path / 'q.pth')
    loaded = load(tmp_path / 'q.pth')
    change(loaded)
    refused(loaded, 'digest')
