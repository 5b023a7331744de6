import pytest
import torch

from taskptq.engine.task_metric import TaskMetric


@pytest.fixture
def model(tiny_config):
    import tiny_task

    torch.manual_seed(1)
    return tiny_task.TinyNet().eval()


def test_the_model_that_is_given_is_evaluated(tiny_config, model, tmp_path):
    metric = TaskMetric(tiny_config, model, tmp_path)
    assert metric.name == 'metric'
    first = metric.evaluate()
    assert metric.name != 'metric'
    assert metric.evaluate() == first
    with torch.no_grad():
        model.head.weight.neg_()
        model.head.bias.neg_()
    assert metric.evaluate() != first


def test_nothing_predicted_is_zero(tiny_config, model, tmp_path, monkeypatch):
    metric = TaskMetric(tiny_config, model, tmp_path)
    metric.evaluate()
    loop = metric._runner.test_loop
    monkeypatch.setattr(loop, 'run', dict)
    assert metric.evaluate() == 0


@pytest.mark.parametrize('key', ['test_dataloader', 'test_evaluator'])
def test_what_cannot_be_evaluated(tiny_config, model, tmp_path, key):
    tiny_config[key] = None
    with pytest.raises(ValueError, match=f'sets no {key}'):
        TaskMetric(tiny_config, model, tmp_path)
