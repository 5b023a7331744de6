"""The digest covers everything; data of other types is refused."""

import pytest
import torch
from saved_nets import quantized_net

from taskptq.export import (
    QuantizedCheckpointError,
    pack_model,
    verify,
)


def refused(payload, match):
    with pytest.raises(QuantizedCheckpointError, match=match) as caught:
        verify(payload)
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    'change',
    [
        lambda p: p['meta'].update(classes=['b']),
        lambda p: p['meta'].update(more=1),
        lambda p: p['structure']['decisions'].update(folded=[]),
        lambda p: p['recipe'].update(seed=1),
        lambda p: p['weights']['one.weight'].update(shape=[6, 8]),
        lambda p: p['taskptq'].update(schema=1) or p.pop('structure'),
    ],
)
def test_digest_covers_what_is_not_a_tensor(payload, change):
    change(payload)
    refused(payload, 'digest')


@pytest.mark.parametrize(
    'recipe', [{'x': object()}, {'x': {'y': torch.ones(1)}}, {(1, 2): 3}]
)
def test_recipe_of_other_types_is_refused(recipe):
    with pytest.raises(QuantizedCheckpointError, match='recipe'):
        pack_model(quantized_net(), recipe=recipe, meta={})
