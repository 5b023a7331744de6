import sys

import pytest

from taskptq.robustness.packages import (
    MissingNoisePackageError,
    optional_package,
)


def test_a_missing_package_names_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    with pytest.raises(
        MissingNoisePackageError,
        match='fog needs imagecorruptions: pip install imagecorruptions-imaug',
    ):
        optional_package('imagecorruptions', noise='fog')
    assert optional_package('json', noise='none').__name__ == 'json'
