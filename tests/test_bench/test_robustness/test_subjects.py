import pytest

from taskptq.apis import read_config
from taskptq.bench.robustness.subjects import (
    Subject,
    load_subjects,
    name_subjects,
)
from taskptq.engine.config_model import build_model
from taskptq.robustness.names import parse_noise


def test_names_are_short_and_differ():
    files = ['a/net_w8a8_coco-1234abcd.pth', 'a/net_w8a8_coco-1234abce.onnx']
    assert name_subjects(files) == ['net_w8a8_coco', 'net_w8a8_coco onnx']
    assert name_subjects(['a/w8a8/q.pth', 'a/w4a8/q.pth']) == [
        'a/w8a8/q.pth',
        'a/w4a8/q.pth',
    ]
    files = ['n_w8a8_mse_x.pth', 'n_w4a8_gptq_x.pth', 'n_x.onnx']
    found = name_subjects(files, model='n_x')
    assert found == ['w8a8_mse', 'w4a8_gptq', 'n_x onnx']
    # A further file doesn't rename those that were measured.
    assert name_subjects(files[:1], model='n_x') == found[:1]


@pytest.mark.parametrize(
    ('kind', 'noise', 'refused'),
    [
        ('float', 'precision=float16', False),
        ('quantized', 'precision=float16', True),
        ('exported', 'ceil_mode', True),
        ('exported', 'box_offset', False),
        ('quantized', 'ceil_mode', False),
    ],
)
def test_what_cannot_concern_a_model(kind, noise, refused):
    subject = Subject(name='a', kind=kind, file='a', sha256='', model=None)
    assert bool(subject.refusal(parse_noise(noise))) is refused


def test_models_are_loaded_by_kind(noisy_task):
    config = read_config(noisy_task.config)
    model = build_model(config)
    found = load_subjects(
        config,
        str(noisy_task.float),
        [str(noisy_task.quantized)],
        model=model,
        device='cpu',
    )
    assert [item.name for item in found] == ['float', 'net_w4a8']
    assert [item.kind for item in found] == ['float', 'quantized']
    assert not any(item.model.training for item in found)
    with pytest.raises(ValueError, match='is a quantized file: give the floa'):
        load_subjects(
            config, str(noisy_task.quantized), [], model=model, device='cpu'
        )
