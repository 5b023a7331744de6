import pytest
from mmengine.runner import Runner
from noisy_task import NoisyTask

from taskptq.apis import read_config


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    return NoisyTask(tmp_path_factory.mktemp('noisy'))


@pytest.fixture
def test(task, tmp_path):

    def run(*noises, checkpoint=task.float, hooks=()):
        config = read_config(task.config)
        config.work_dir = str(tmp_path)
        config.load_from = str(checkpoint)
        hook = dict(type='taskptq.NoiseHook', noises=list(noises))
        config.custom_hooks = [*hooks, *([hook] if noises else [])]
        config.experiment_name = f'noise_{id(config)}'
        runner = Runner.from_cfg(config)
        return runner.test()['mShare'], runner

    return run


def test_image_and_model_noises_act_and_go(test):
    clean, _ = test()
    found = {test(*names)[0] for names in (['crop=1'], ['ceil_mode'])}
    found.add(test('crop=1', 'ceil_mode')[0])
    assert len({clean, *found}) == 4
    _, runner = test('crop=1', 'upsample=bilinear')
    assert runner.test()['mShare'] == test('crop=1', 'upsample=bilinear')[0]
    pipeline = runner.test_dataloader.dataset.pipeline
    assert type(pipeline).__name__ == 'Compose'


def test_a_quantized_model_is_tested_under_noise(test, task):
    hooks = [dict(type='taskptq.PTQHook')]
    clean, _ = test(checkpoint=task.quantized, hooks=hooks)
    noisy, _ = test('ceil_mode', checkpoint=task.quantized, hooks=hooks)
    assert clean != noisy


@pytest.mark.parametrize(
    ('noise', 'message'),
    [
        ('decode=pillow', 'decode=pillow changes nothing: no pixel'),
        ('box_offset', 'box_offset changes nothing: the model predicts no'),
        ('rain', "noise 'rain' is unknown"),
    ],
)
def test_what_changes_nothing_is_refused(test, noise, message):
    with pytest.raises(ValueError, match=message):
        test(noise)


def test_no_noise_is_refused(test):
    from taskptq.engine.noise_hook import NoiseHook

    with pytest.raises(ValueError, match='noises is empty'):
        NoiseHook(noises=[])
