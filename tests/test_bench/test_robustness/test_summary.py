import pytest
from robustness_results import content

from taskptq.bench.robustness.summary import metric_of, summarize, values_of


def test_known_scores():
    found = summarize(content())['corruptions']
    assert found['float']['mean'] == pytest.approx(0.29)
    assert found['float']['relative'] == pytest.approx(0.725)
    assert found['q']['mean'] == pytest.approx(0.237)
    assert found['q']['excess'] == pytest.approx(0.013)
    assert found['q']['relative_loss_noise'] == pytest.approx(0.1828, abs=1e-4)
    assert found['q']['worst_noise'] == 'fog=5'


def test_rows_that_a_model_lacks_are_left_out_for_all():
    found = summarize(content())['systems']
    # precision has no quantized value, and would raise the float mean.
    assert found['float']['mean'] == pytest.approx(0.30)
    assert found['q']['mean'] == pytest.approx(0.28)
    assert found['float']['worst_noise'] == 'crop=1'


def test_the_least_of_all_attacks_counts():
    found = summarize(content())['attacks']
    assert found['q']['least'] == {'4': 0.1}
    assert found['float']['least'] == {'4': 0.05}


def test_a_model_that_predicts_nothing_scores_zero():
    results = content()
    assert metric_of(results) == 'coco/bbox_mAP'
    results['rows'][1]['results']['q'] = {'metrics': {}}
    assert values_of(results, results['rows'][1])['q'] == 0.0
    assert summarize({'rows': []}) == {}
