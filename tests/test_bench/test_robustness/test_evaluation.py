import copy

import pytest
from mmengine.runner import Runner

from taskptq.apis import read_config
from taskptq.bench.robustness.evaluation import RobustnessEvaluation
from taskptq.bench.robustness.subjects import load_subjects
from taskptq.robustness.names import parse_noises


@pytest.fixture
def subjects_of(noisy_task):

    def load(evaluation, config):
        return load_subjects(
            config,
            str(noisy_task.float),
            [str(noisy_task.quantized)],
            model=evaluation.model,
            device='cpu',
        )

    return load


@pytest.fixture
def config(noisy_task):
    return read_config(noisy_task.config)


@pytest.fixture
def run(config, subjects_of):
    evaluation = RobustnessEvaluation(config)
    subjects = subjects_of(evaluation, config)

    def evaluate(names):
        noises = parse_noises(names) if names else ()
        return evaluation.run(subjects, noises)

    return evaluate


def test_the_clean_test_is_that_of_the_runner(
    run, config, noisy_task, tmp_path
):
    found = run('')['float'].metrics
    config = copy.deepcopy(config)
    config.work_dir = str(tmp_path / 'host')
    config.load_from = str(noisy_task.float)
    assert Runner.from_cfg(config).test() == found


@pytest.mark.parametrize(
    'names', ['crop=1', 'ceil_mode', 'upsample=bilinear', 'color=nv12']
)
def test_noises_move_the_metric_of_each_model(run, names):
    clean, noisy = run(''), run(names)
    for name in ('float', 'net_w4a8'):
        assert noisy[name].metrics['mShare'] != clean[name].metrics['mShare']
    assert run('') == clean
    assert run(names) == noisy


def test_reasons_by_model(run):
    found = run('precision=bfloat16')
    assert found['net_w4a8'].reason.startswith('this model is quantized')
    assert found['float'].metrics
    for names, reason in (
        ('box_offset', 'the model predicts no boxes'),
        ('decode=pillow', 'no pixel of 5 images comes out otherwise'),
        ('upsample=nearest', 'enlarges no map otherwise than with nearest'),
    ):
        outcomes = run(names).values()
        assert all(reason in one.reason for one in outcomes)
        assert not any(one.metrics for one in outcomes)


def test_a_model_that_breaks_says_how(config, subjects_of):
    evaluation = RobustnessEvaluation(config)
    subjects = subjects_of(evaluation, config)

    def fixed(inputs, data_samples=None, mode='tensor'):
        raise RuntimeError('sizes 11 and 12 differ\nat a place')

    subjects[0].model.forward = fixed
    found = evaluation.run(subjects[:1], parse_noises('ceil_mode'))
    assert found['float'].reason == (
        'the model cannot run so: sizes 11 and 12 differ'
    )


def test_a_config_without_a_test_is_refused(config):
    config.test_evaluator = None
    with pytest.raises(ValueError, match='sets no test_evaluator'):
        RobustnessEvaluation(config)
