"""The record of a query distillation: only training steps count."""

import pytest
import torch

from taskptq.methods.qdetr.matching import all_queries
from taskptq.methods.qdetr.record import DistillationRecord


def test_batches_go_by_their_first_image():
    metas = [[{'id': 0}, {'id': 1}], [{'id': 2}], [{'id': 3}, {'id': 4}]]
    record = DistillationRecord.of_batches(metas)
    assert list(record.metas) == [0, 2, 3]
    assert record.metas[2] == [{'id': 2}]


def test_only_steps_are_counted():
    record = DistillationRecord()
    match = all_queries(torch.zeros(2, 3, 4))
    for error in (4.0, 2.0, 1.0):
        record.count(match)
        record.note({'box': torch.tensor(error)})
    with torch.no_grad():
        record.count(match)
        record.note({'box': torch.tensor(99.0)})
    assert record.to_dict() == {
        'steps': 3,
        'pairs_per_image': 3.0,
        'images_without_pairs': 0.0,
        'first_terms': {'box': 4.0},
        'last_terms': {'box': 1.0},
    }


def test_terms_hold_no_graph():
    record = DistillationRecord()
    record.note({'box': torch.ones((), requires_grad=True) * 2})
    assert not record.first_terms['box'].requires_grad
    assert record.to_dict()['first_terms']['box'] == pytest.approx(2)


def test_nothing_seen_is_a_report_too():
    assert DistillationRecord().to_dict()['pairs_per_image'] == 0
