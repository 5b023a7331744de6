"""Models whose network is replaced, compared with the models themselves."""

import copy

import torch

from taskptq.engine.network_parts import guard_rest, parts_of


def preprocessed(model, batch):
    with torch.no_grad():
        return dict(model.data_preprocessor(copy.deepcopy(batch), False))


def with_own_parts(model, parts):
    """A copy whose parts are computed by functions of the original."""
    host = copy.deepcopy(model)
    runs = {
        part.name: torch.no_grad()(part.network.named_outputs)
        for part in parts
    }
    parts_of(host).install(runs)
    guard_rest(host)
    return host


def predictions(model, batch):
    """Boxes and scores, or maps of labels, of a batch."""
    with torch.no_grad():
        samples = model.test_step(copy.deepcopy(batch))
    found = []
    for sample in samples:
        if 'pred_sem_seg' in sample:
            found.append(sample.pred_sem_seg.data)
        else:
            instances = sample.pred_instances
            found += [instances.bboxes, instances.scores, instances.labels]
    return found


def assert_same(found, expected, *, atol=0.0):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
