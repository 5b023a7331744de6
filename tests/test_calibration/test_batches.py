"""Collated batches: length, metainfo, and parts that join to the whole."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.calibration.batches import BatchParts, batch_length, batch_metas


def collated(size, *, first=0):
    return {
        'inputs': torch.arange(first, first + size).float().view(size, 1, 1),
        'data_samples': [
            SimpleNamespace(metainfo={'id': first + i}) for i in range(size)
        ],
        'scale': torch.tensor(3.0),
        'pair': (1, 2),
    }


@pytest.mark.parametrize(
    ('batch', 'length'),
    [
        (collated(3), 3),
        ({'inputs': {'image': torch.zeros(2, 1), 'depth': [1, 2]}}, 2),
        ({'inputs': [torch.zeros(1)] * 4}, 4),
        (torch.zeros(5, 2), 5),
        ((torch.zeros(2, 1), torch.zeros(7)), 2),
        ({'image': torch.zeros(3)}, 0),
        ([], 0),
        ('text', 0),
    ],
)
def test_length(batch, length):
    assert batch_length(batch) == length


def test_metas_of_samples_and_of_plain_dicts():
    assert batch_metas(collated(2, first=5)) == [{'id': 5}, {'id': 6}]
    plain = {'inputs': torch.zeros(1, 1), 'data_samples': [{'id': 9}]}
    (meta,) = batch_metas(plain)
    assert meta == {'id': 9}
    assert meta is not plain['data_samples'][0]


def test_parts_join_to_the_whole():
    batches = [collated(5), collated(2, first=5), collated(1, first=7)]
    parts = BatchParts(batches, 2)
    assert [batch_length(part) for part in parts] == [2, 2, 1, 2, 1]
    assert len(parts) == 5
    seen = torch.cat([part['inputs'].flatten() for part in parts])
    assert seen.tolist() == list(range(8))
    assert [m['id'] for part in parts for m in batch_metas(part)] == [
        *range(8)
    ]
    # What has no entry per image goes along whole.
    assert all(part['scale'] == 3 for part in parts)
    assert parts[0]['pair'] == (1, 2)
    assert len(parts[1:3]) == 2
    assert torch.equal(parts[-1]['inputs'], batches[2]['inputs'])


def test_batch_without_a_length_names_the_setting():
    with pytest.raises(ValueError, match=r'network_batch_size=2.*batch 1'):
        BatchParts([collated(1), {'image': 3}], 2)
