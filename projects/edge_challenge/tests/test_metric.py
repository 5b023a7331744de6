import pytest
import torch
from edge_challenge.dataset import CLASSES
from score_vectors import FOUND, TRUTH


@pytest.fixture
def build():
    from edge_challenge.metric import LPCVCMetric

    def make(**options):
        metric = LPCVCMetric(**options)
        metric.dataset_meta = {'classes': CLASSES}
        return metric

    return make


def sample(truth, found):
    return {
        'gt_sem_seg': {'data': torch.as_tensor(truth)[None]},
        'pred_sem_seg': {'data': torch.as_tensor(found)[None]},
    }


def run(metric):
    stray = torch.zeros(4, 4, dtype=torch.long)
    found = stray.clone()
    found[1, 2] = 1
    metric.process({}, [sample(TRUTH, FOUND), sample(stray, found)])
    return metric.evaluate(2)


def test_accuracy_and_score(build):
    found = run(build(seconds_per_image=0.5))
    assert found['lpcvc/mDice'] == pytest.approx(0.498132, abs=1e-6)
    assert found['lpcvc/pooled_dice'] == pytest.approx(0.529231, abs=1e-6)
    assert found['lpcvc/score'] == pytest.approx(2 * 0.498132, abs=1e-5)


def test_without_a_time_there_is_no_score(build):
    assert set(run(build())) == {'lpcvc/mDice', 'lpcvc/pooled_dice'}
    with pytest.raises(ValueError, match='seconds=-1'):
        build(seconds_per_image=-1)
