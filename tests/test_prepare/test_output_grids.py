import pytest
import torch
from torch import nn

from taskptq.calibration.calibrate import calibrate
from taskptq.export import pack_model, unpack_model
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.decisions import Decisions
from taskptq.reconstruction.freeze import freeze
from taskptq.testing.models import tiny_batches, tiny_model

DEPLOY = {'deploy': 'onnxruntime'}


def prepared(qconfig, name='conv'):
    batches = tiny_batches(name)
    model = tiny_model(name)
    report = prepare(model, QConfig.from_dict(qconfig), batch=batches[0])
    return model, report.decisions, batches


def frozen(qconfig, name='conv'):
    model, decisions, batches = prepared(qconfig, name)
    calibrate(model, batches, forward=lambda m, x: m(x))
    freeze(model)
    return model, decisions, batches


def test_both_sides_of_a_sum_and_the_sum_get_grids():
    model, decisions, _ = prepared(DEPLOY)
    modules = [m for grid in decisions.outputs for m in grid['modules']]
    assert modules == [
        'layer1.conv2',
        'layer1',
        'layer2.conv2',
        'layer2.shortcut.0',
    ]
    # Both readers of the block's output take its grid.
    assert model.layer2.conv1.input_quantizer is None
    assert model.layer2.shortcut[0].input_quantizer is None
    assert model.layer1.output_quantizer.spec.num_bits == 8


class Enlarged(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.enlarge = nn.Upsample(scale_factor=2, mode=mode)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.enlarge(self.first(x))
        return self.left(x) + self.right(x)


@pytest.mark.parametrize(
    ('mode', 'shared'),
    [
        # Interpolated in floats: the readers' own grids are enough.
        ('bilinear', []),
        # Codes are moved: readers take the grid of the source.
        ('nearest', [(['first'], ['left', 'right'])]),
    ],
)
def test_only_nearest_neighbors_share_the_grid_of_their_source(mode, shared):
    torch.manual_seed(0)
    model = Enlarged(mode).eval()
    qconfig = QConfig.from_dict({**DEPLOY, 'edge_bits': None})
    report = prepare(model, qconfig, batch=torch.randn(1, 3, 6, 6))
    for layer in (model.left, model.right):
        assert (layer.input_quantizer is None) == (mode == 'nearest')
    found = [
        (grid['modules'], [name.split('.')[0] for name in grid['replaced']])
        for grid in report.decisions.outputs
        if grid['replaced']
    ]
    assert found == shared


def test_readers_of_fewer_bits_keep_their_own_grid():
    model, _, _ = prepared({**DEPLOY, 'activation': {'num_bits': 4}})
    assert model.layer1.output_quantizer.spec.num_bits == 8
    assert model.layer2.conv1.input_quantizer.spec.num_bits == 4


def test_tensorrt_adds_what_is_on_a_grid():
    model, decisions, _ = prepared({'deploy': 'tensorrt'})
    modules = [m for grid in decisions.outputs for m in grid['modules']]
    # No module of its own returns what the first block adds.
    assert modules == ['layer2.shortcut.0']
    spec = model.layer2.shortcut[0].output_quantizer.spec
    assert spec.symmetric
    assert spec.signed


@pytest.mark.parametrize('qconfig', [{}, {'deploy': 'openvino'}])
def test_other_recipes_get_none(qconfig):
    _, decisions, _ = prepared(qconfig)
    assert decisions.outputs == ()


def test_outputs_lie_on_their_grids():
    model, _, (x, *_) = frozen(DEPLOY)
    seen = []
    model.layer1.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(x)
    grid = model.layer1.output_quantizer
    torch.testing.assert_close(
        grid.dequantize(grid.quantize(seen[0])), seen[0]
    )
    assert len(seen[0].unique()) <= 256


def test_a_file_rebuilds_them():
    model, decisions, (x, *_) = frozen(DEPLOY)
    payload = pack_model(model, recipe={}, meta={})
    other = tiny_model('conv', seed=1)
    recorded = Decisions.from_dict(decisions.to_dict())
    prepare(other, QConfig.from_dict(DEPLOY), decisions=recorded)
    unpack_model(payload, other)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_a_record_of_another_model_is_refused():
    _, decisions, _ = prepared(DEPLOY)
    wrong = ({'modules': ['layer9'], 'replaced': []},)
    plain = {**decisions.to_dict(), 'outputs': wrong}
    with pytest.raises(ValueError, match='layer9'):
        prepare(
            tiny_model('conv'),
            QConfig.from_dict(DEPLOY),
            decisions=Decisions.from_dict(plain),
        )


def test_the_export_has_little_left_to_add():
    pytest.importorskip('onnxruntime', reason='needs taskptq[onnx]')
    from taskptq.export.onnx.completion import operators_of
    from taskptq.export.onnx.emission import exporting
    from taskptq.export.onnx.export import trace
    from taskptq.export.onnx.graph import Graph, constants_to_initializers
    from taskptq.prepare.grid_plan import plan_grids

    lacking = {}
    for name, qconfig in (('plain', {}), ('deploy', DEPLOY)):
        model, _, (x, *_) = frozen(qconfig)
        with exporting(model) as emitted:
            proto = trace(
                model,
                (x,),
                input_names=['x'],
                output_names=['y'],
                dynamic_axes=None,
                opset=20,
            )
        graph = Graph(proto)
        constants_to_initializers(graph)
        plan = plan_grids(
            operators_of(graph, emitted.grids), outputs=graph.outputs
        )
        lacking[name] = [t for shared in plan for t in shared.sources]
    assert len(lacking['plain']) == 6
    # The stem's output is no module's. Floats alone read the last one.
    assert lacking['deploy'] == ['/Relu_output_0']
