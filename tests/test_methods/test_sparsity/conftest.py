import pytest

from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model

FLOAT = {
    'weight': {'type': 'FloatQuantizer'},
    'activation': False,
    'softmax': False,
    'products': False,
}


@pytest.fixture
def swapped():
    """Return a tiny model whose weights may be masked, and its batches."""

    def make(name='conv', **qconfig):
        model = tiny_model(name).eval()
        prepare(model, QConfig.from_dict({**FLOAT, **qconfig}))
        return model, tiny_batches(name)

    return make
