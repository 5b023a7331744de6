"""Plain models in memory: no config, no Runner, no OpenMMLab host."""

from pathlib import Path

import pytest
import torch
import warm_python
from plain_detector import PlainDetector, images
from torch import nn

import taskptq
from taskptq.engine import in_memory
from taskptq.export import load

ROOT = Path(__file__).resolve().parents[2]
QUICK = dict(reconstruction=dict(steps=3, batch_size=2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PlainDetector().eval()


@pytest.fixture
def batches():
    """Three batches of two images of different sizes, for model(images)."""
    return [(images(seed),) for seed in range(3)]


class Classifier(nn.Module):
    """Takes two named inputs, or two positional ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, image, scale):
        pooled = self.conv(image).mean((2, 3))
        return self.head(torch.cat([pooled, scale[:, None]], dim=1))


def same(found, expected):
    return all(
        torch.equal(one[key], other[key])
        for one, other in zip(found, expected, strict=True)
        for key in ('boxes', 'scores')
    )


def test_a_detector_of_lists_of_images(model, batches, tmp_path):
    quantized, report = taskptq.quantize(
        model, batches, recipe=['w4a4_qdrop', QUICK], out=tmp_path / 'q.pth'
    )
    assert quantized is model
    assert report['swap']['num_float'] == 0
    assert report['reconstruction']['units']
    payload = load(tmp_path / 'q.pth')
    assert payload['meta'] == {
        'model': 'PlainDetector',
        'recipe': 'w4a4_qdrop + own settings',
    }
    again = taskptq.load_quantized(PlainDetector(), tmp_path / 'q.pth')
    with torch.no_grad():
        expected, found = model(images(9)), again(images(9))
    assert same(found, expected)
    assert expected[0]['scores'].numel()


def test_without_out_nothing_is_written(model, batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, report = taskptq.quantize(model, batches, recipe='w8a8')
    assert not list(tmp_path.iterdir())
    assert 'checkpoint' not in report
    assert report['file_bytes'] > 0


def test_a_forward_of_ones_own(model, tmp_path):
    seen = []

    def forward(model, batch):
        seen.append(batch)
        return model(batch['images'])

    taskptq.quantize(
        model,
        [{'images': images(0), 'label': 'x'}],
        recipe=['w4a4_qdrop', QUICK],
        forward=forward,
    )
    assert all(batch['label'] == 'x' for batch in seen)


def test_a_generator_counts_as_its_batches(model, batches):
    _, report = taskptq.quantize(model, iter(batches), recipe='w8a8')
    assert report['recipe']['calibration']['num_batches'] == 3


@pytest.mark.parametrize(
    'batch',
    [
        (torch.ones(2, 3, 8, 8), torch.ones(2)),
        [torch.ones(2, 3, 8, 8), torch.ones(2)],
        {'scale': torch.ones(2), 'image': torch.ones(2, 3, 8, 8)},
    ],
)
def test_how_a_batch_is_passed(batch):
    assert in_memory.call_model(Classifier(), batch).shape == (2, 2)


def test_a_tensor_is_the_one_argument():
    x = torch.randn(2, 3)
    assert torch.equal(in_memory.call_model(nn.Identity(), x), x)


def test_mmengine_models_get_their_test_step():
    from mmengine.model import BaseModel

    class Host(BaseModel):
        def forward(self, **data):
            raise AssertionError

        def test_step(self, data):
            return ('stepped', data)

    assert in_memory.call_model(Host(), {'inputs': 1}) == (
        'stepped',
        {'inputs': 1},
    )


def test_the_batches_are_a_part_of_the_recipe(batches):
    digests = [
        in_memory.recorded(found, unreached='error')['inputs']
        for found in (batches, batches[:2], [*batches[:2], (images(8),)])
    ]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ([], 'batches is empty: give at least one batch'),
        (torch.ones(2, 3, 8, 8), r'batches.*Tensor.*write \[batch\]'),
        ('float.pth', 'with a config give a checkpoint'),
        (3, 'batches=3: give a list of batches'),
        (
            [torch.ones(2, 1, 8, 8)],
            r'PlainDetector does not take batches\[0\], a tensor of shape '
            r'\[2, 1, 8, 8\]: .*; give forward=',
        ),
        ([{'pictures': 1}], r'a dict of pictures: .*pictures.*give forward='),
    ],
)
def test_batches_that_cannot_be(model, given, message):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        taskptq.quantize(model, given, recipe='w8a8')
    assert all(
        torch.equal(before[k], v) for k, v in model.state_dict().items()
    )


def test_half_precision_is_refused(model, batches):
    model.head.half()
    with pytest.raises(ValueError, match=r'head.weight of PlainDetector is'):
        taskptq.quantize(model, batches, recipe='w8a8')


@pytest.mark.parametrize(
    ('wrap', 'words'),
    [
        (nn.DataParallel, 'inside of DataParallel: give model.module, and'),
        (
            lambda model: torch.compile(model, backend='eager'),
            'inside of OptimizedModule: give model._orig_mod, and',
        ),
        (torch.jit.script, 'the model is scripted'),
    ],
)
def test_wrapped_models_are_refused(wrap, words):
    plain = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=words):
        taskptq.quantize(wrap(plain), [torch.zeros(1, 3, 4, 4)], recipe='w8a8')


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_outside(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    batches = [torch.randn(2, 3, 4, 4)]
    settings = dict(steps=2, skip_below=0.0)
    with mode():
        taskptq.quantize(
            model, batches, recipe='w2a4_qdrop', reconstruction=settings
        )
        assert not torch.is_grad_enabled()


def test_losses_of_named_heads_are_refused(model, batches):
    with pytest.raises(ValueError, match=r'QueryDistillationLoss needs the'):
        taskptq.quantize(model, batches, recipe='w4a4_fqm')


def test_a_registered_adapter_may_judge_heads(model, monkeypatch):
    class Own(in_memory.Adapter):
        pass

    monkeypatch.setattr(in_memory, 'build_adapter', Own)
    parts = dict(
        reconstruction=dict(scope='network'),
        loss=dict(type='QueryDistillationLoss'),
    )
    recipe = in_memory.Recipe.from_config({}, **parts)
    found = in_memory.choose_adapter(model, in_memory.call_model, recipe)
    assert type(found) is Own


def test_twice_is_refused(model, batches):
    taskptq.quantize(model, batches, recipe='w8a8')
    with pytest.raises(RuntimeError, match='quantized already'):
        taskptq.quantize(model, batches, recipe='w8a8')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (dict(device='cpu'), 'device=.*models of configs'),
        (dict(allow_overlap=True), 'allow_overlap=.*models of configs'),
        (dict(trust_checkpoint=True), 'trust_checkpoint=.*models of configs'),
        (dict(calibration=dict(num_images=4)), 'num_images'),
        (dict(calibration=dict(unreached='maybe')), 'unreached'),
    ],
)
def test_options_that_only_configs_have(model, batches, option, message):
    with pytest.raises(ValueError, match=message):
        taskptq.quantize(model, batches, recipe='w8a8', **option)


def test_a_file_of_another_model_is_refused(model, batches, tmp_path):
    taskptq.quantize(model, batches, recipe='w8a8', out=tmp_path / 'q.pth')
    with pytest.raises(RuntimeError, match='does not fit'):
        taskptq.load_quantized(Classifier(), tmp_path / 'q.pth')


PROGRAM = """
import sys
sys.path.insert(0, 'tests/helpers')
for name in ('mmcv', 'mmdet', 'mmseg', 'segment_anything'):
    sys.modules[name] = None  # an import of it fails, as if not installed
import taskptq, torch
from taskptq.cli.main import main
from plain_detector import PlainDetector, images
out = sys.argv[1]
torch.manual_seed(0)
model = PlainDetector().eval()
taskptq.quantize(model, [(images(0),), (images(1),)], recipe='w8a8', out=out)
again = taskptq.load_quantized(PlainDetector(), out)
with torch.no_grad():
    pairs = zip(model(images(5)), again(images(5)))
    assert all(torch.equal(a['boxes'], b['boxes']) for a, b in pairs)
main(['info', out])
"""


def test_no_host_is_needed(tmp_path):
    result = warm_python.run(['-c', PROGRAM, tmp_path / 'q.pth'], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert 'PlainDetector' in result.stdout
    assert '% of multiply-accumulates' in result.stdout
