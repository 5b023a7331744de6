"""A file's modules that pad values of their own."""

import pytest
from torch import nn

from taskptq.methods.outlier_suppression.paddings import replay_paddings


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def test_modules_get_zeros_of_their_channels():
    outline = model()
    replay_paddings(outline, {'paddings': {'1': 3}})
    assert outline[1].channel_pad_value.tolist() == [0, 0, 0]
    assert not hasattr(outline[0], 'channel_pad_value')


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (None, 'are missing'),
        ({}, 'are missing'),
        (['1'], 'are missing'),
        ({'neck': 4}, "'neck' is to pad .* no such module"),
        ({'1': 1 << 30}, r"paddings\['1'\]=1073741824"),
        ({'1': 'many'}, r"paddings\['1'\]='many'"),
        ({str(i): 4 for i in range(9)}, 'are missing'),
    ],
)
def test_what_does_not_fit_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        replay_paddings(model(), {'paddings': given})
