import pytest
import torch
from torch import nn

from taskptq.engine.observed_layers import observe_layers


class Detector(nn.Module):
    """Draws masks of what its boxes are sure of, as detectors do."""

    def __init__(self):
        super().__init__()
        self.test_cfg = {'rcnn': {'score_thr': 0.5}}
        self.on_maps = nn.Conv2d(2, 2, 1)
        self.boxes = nn.Linear(2, 1)
        self.masks = nn.Linear(2, 1)
        self.queries = nn.Embedding(3, 2)
        self.idle = nn.Linear(2, 2)

    def extract_feat(self, images):
        return (images + 1, images[..., :2])

    def predict(self, images, score=0.1):
        feats = self.extract_feat(images)
        maps = self.on_maps(feats[0])
        rois = maps.mean((2, 3)) + self.queries.weight.sum(0)
        self.boxes(rois)
        assert self.idle.weight.device == rois.device
        if score > self.test_cfg['rcnn']['score_thr']:
            self.masks(rois)


@pytest.fixture
def seen():
    model = Detector()
    layers = dict(model.named_children())
    found = observe_layers(
        model, layers, lambda: model.predict(torch.randn(2, 2, 4, 6))
    )
    assert model.test_cfg == {'rcnn': {'score_thr': 0.5}}
    assert 'extract_feat' not in vars(model)
    return model, found


def test_layers_are_sorted_by_their_use(seen):
    _, found = seen
    assert set(found.calls) == {'on_maps', 'boxes', 'masks'}
    assert found.weights == ['queries.weight']
    assert found.unused == ['idle']


def test_a_layer_on_features_runs_on_others(seen):
    model, found = seen
    assert found.on_features('on_maps')
    assert found.takes_maps('on_maps')
    assert not found.on_features('boxes')
    assert not found.takes_maps('boxes')
    other = torch.randn(1, 2, 3, 3)
    result = found.run_on('on_maps', model.on_maps, (other, other[..., :1]))
    assert torch.equal(result, model.on_maps(other))
