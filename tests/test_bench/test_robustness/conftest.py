import pytest
from noisy_task import NoisyTask


@pytest.fixture(scope='session')
def noisy_task(tmp_path_factory):
    """Drawn images, a config, a float and a quantized checkpoint."""
    return NoisyTask(tmp_path_factory.mktemp('noisy'))
