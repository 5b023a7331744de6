"""Fields and constructor arguments are checked, in one line each."""

from dataclasses import dataclass

import numpy as np
import pytest

from taskptq.core.settings import (
    SettingError,
    Whole,
    check_fields,
    refusing,
    setting,
)


@dataclass(frozen=True)
class Settings:
    steps: int = setting(4, Whole(low=1))
    other: object = None

    def __post_init__(self) -> None:
        check_fields(self, name='mine')


def test_fields_are_checked_and_plain():
    settings = Settings(steps=np.int64(3), other=np.int64(3))
    assert type(settings.steps) is int
    assert type(settings.other) is np.int64
    with pytest.raises(SettingError, match=r'mine\.steps=0: give'):
        Settings(steps=0)


@pytest.mark.parametrize(
    'error',
    [
        KeyError('a'),
        TypeError('two\nlines'),
        ZeroDivisionError(),
        AttributeError('no such thing'),
    ],
)
def test_what_constructors_raise_becomes_one_line(error):
    said = r"^x={'type': 'A'}: .+"
    with (
        pytest.raises(SettingError, match=said) as caught,
        refusing('x', {'type': 'A'}),
    ):
        raise error
    assert '\n' not in str(caught.value)
    assert caught.value.__cause__ is error


def test_interrupts_pass():
    with pytest.raises(KeyboardInterrupt), refusing('x', 1):
        raise KeyboardInterrupt
