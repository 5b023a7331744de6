import pytest

from taskptq.engine.calibration_config import CalibrationConfig


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (3, 'calibration=3: give a dict'),
        ('', "calibration='': give a dict"),
        (dict(images=3), r"unknown key 'images' \(did you mean 'num_images'"),
        (
            dict(num_images=0),
            'calibration.num_images=0: give a whole number of at least 1',
        ),
        (dict(num_images=8.0), r'calibration.num_images=8\.0'),
        (dict(num_images=True), 'calibration.num_images=True'),
        (
            dict(batch_size=0),
            'batch_size=0: give a whole number from 1 .*or None',
        ),
        (dict(seed=-1), 'calibration.seed=-1'),
        (dict(seed=1 << 40), 'calibration.seed=1099511627776'),
        (
            dict(allow_overlap='False'),
            "allow_overlap='False': give True or False .without quotes",
        ),
        (
            dict(unreached='ignore'),
            "unreached='ignore': choose one of 'error'",
        ),
        (dict(dataset='coco'), "calibration.dataset='coco': give a dataset"),
        (dict(dataset={}), 'calibration.dataset={}'),
        (dict(pipeline='test'), "calibration.pipeline='test': give a list"),
        (dict(pipeline=[]), r'calibration.pipeline=\[\]: give 1 to'),
        (dict(pipeline=['Resize']), r"calibration.pipeline\[0\]='Resize'"),
        (dict(noise='fog=3'), "calibration.noise='fog=3': give a list"),
        (dict(noise=[]), 'give 1 to'),
        (dict(noise=['rain']), r"noise\[0\]: noise 'rain' is unknown"),
        (dict(noise=['ceil_mode']), r"noise\[0\]='ceil_mode': give an image"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        CalibrationConfig.from_dict(settings)


def test_recipe_names_only_what_is_not_the_default():
    old = {'num_images': 4, 'batch_size': None, 'seed': 3}
    config = CalibrationConfig.from_dict({'num_images': 4}, seed=3)
    assert config.recipe() == old
    config = CalibrationConfig.from_dict(
        {'num_images': 4, 'seed': 3, 'unreached': 'float'}
    )
    assert config.recipe() == {**old, 'unreached': 'float'}


def test_noises_are_recorded():
    config = CalibrationConfig.from_dict(
        {'noise': ['clean', 'fog=3+crop=1'], 'num_images': 4}
    )
    assert config.recipe()['noise'] == ['clean', 'fog=3+crop=1']
