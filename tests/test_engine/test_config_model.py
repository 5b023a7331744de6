import pytest
from mmengine.config import Config
from torch import nn

from taskptq.engine.config_model import (
    build_model,
    evaluation_source,
    load_config,
)


def test_the_model_of_a_config(tiny_path):
    config = load_config(tiny_path)
    assert load_config(config) is config
    model = build_model(config)
    assert type(model).__name__ == 'TinyNet'
    assert model.cfg is config
    assert not model.training
    # Building takes nothing out of the config.
    assert config.model == {'type': 'TinyNet'}


def test_what_is_no_config():
    with pytest.raises(ValueError, match="config='dict': give a Config or"):
        load_config({})


@pytest.mark.parametrize('device', ['gpu', 'cuda'])
def test_devices_that_torch_has_not(tiny_path, monkeypatch, device):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}': .*give cpu"):
        build_model(tiny_path, device=device)


def test_a_model_whose_eval_returns_nothing(tiny_path, monkeypatch):
    config = load_config(tiny_path)
    cls = type(build_model(config))

    def train(self, mode=True):
        nn.Module.train(self, mode)

    monkeypatch.setattr(cls, 'train', train)
    model = build_model(config)
    assert isinstance(model, cls)
    assert not model.training


def test_images_are_those_of_the_test_set(tiny_path):
    config = load_config(tiny_path)
    assert len(evaluation_source(config).dataset) == 8
    config.pop('test_dataloader')
    assert len(evaluation_source(config).dataset) == 8
    with pytest.raises(ValueError, match='neither test_dataloader nor'):
        evaluation_source(Config({'model': {}}))
