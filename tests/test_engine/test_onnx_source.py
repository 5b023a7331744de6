import json

import pytest
import torch

from taskptq.engine.onnx_source import OnnxSource


def test_facts_of_a_float_file(tmp_path):
    path = tmp_path / 'float.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}}, path)
    facts = OnnxSource.read(path, float_model=True).facts()
    assert facts['recipe'] == 'float'
    assert len(facts['digest']) == 64
    json.dumps(facts)


def test_weights_are_loaded(tmp_path):
    path = tmp_path / 'float.pth'
    layer = torch.nn.Linear(2, 2)
    torch.save({'state_dict': layer.state_dict()}, path)
    other = torch.nn.Linear(2, 2)
    OnnxSource.read(path, float_model=True).load_into(other)
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize(
    ('name', 'message'),
    [('float.pth', 'quantize it first'), ('m.onnx', 'exported file already')],
)
def test_the_other_kind_is_refused(tmp_path, name, message):
    path = tmp_path / name
    torch.save({'state_dict': {'w': torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=message):
        OnnxSource.read(path, float_model=False)
