import pytest

from taskptq.robustness.names import (
    corruption_noises,
    joined,
    parse_noise,
    parse_noises,
    system_noises,
)


def test_every_noise_is_read_from_its_own_name():
    noises = [*system_noises(), *corruption_noises()]
    assert len({noise.name for noise in noises}) == len(noises)
    assert all(parse_noise(noise.name) == noise for noise in noises)


def test_numbers_of_noises():
    assert len(corruption_noises()) == 75
    assert len(corruption_noises([1, 3], validation=True)) == 8
    kinds = {noise.kind for noise in system_noises()}
    assert kinds == {
        'decode',
        'resize',
        'color',
        'crop',
        'ceil_mode',
        'upsample',
        'box_offset',
        'precision',
    }


def test_the_kind_alone_takes_the_first_option():
    assert parse_noise('fog').option == '1'
    assert parse_noise('box_offset').name == 'box_offset=1'
    assert joined(parse_noises('fog=2+ceil_mode')) == 'fog=2+ceil_mode'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('rain', "noise 'rain' is unknown"),
        ('fog=6', "'fog' has no option '6': choose one of 1, 2"),
        ('decode=opencv', "'decode' has no option 'opencv'"),
        ('fog=1+fog=2', "has 'fog' twice"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        parse_noises(name)
