"""Five DETR types from a float checkpoint to a tested quantized file."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from taskptq.recipes import resolve

ROOT = Path(__file__).resolve().parents[2]
# Each type once, and each method on both kinds of attention.
CASES = [
    ('detr', 'qdrop'),
    ('conditional', 'drd-centering'),
    ('dab', 'drd'),
    ('deformable', 'drd'),
    ('dino', 'qdrop'),
]
# Layers of the heads that give boxes, by type.
BOX_LAYERS = {
    'detr': ['bbox_head.fc_reg'],
    'conditional': [
        'bbox_head.fc_reg',
        'decoder.ref_point_head.layers.0',
        'decoder.ref_point_head.layers.1',
    ],
    'dab': ['bbox_head.fc_reg.layers.2'],
    'deformable': ['bbox_head.reg_branches.0.4', 'reference_points_fc'],
    'dino': ['bbox_head.reg_branches.0.4', 'bbox_head.reg_branches.2.4'],
}


def read_hook(method):
    """A recipe by name, at two steps of each unit."""
    steps = dict(steps=2, batch_size=2, skip_below=0.0)
    if 'network_steps' in resolve(f'w4a4-8_{method}')['reconstruction']:
        steps['network_steps'] = 2
    return dict(recipe=[f'w4a4-8_{method}', dict(reconstruction=steps)])


def run(config):
    """Test; returns the predicted boxes and the work_dir."""
    from mmengine.runner import Runner

    metrics = Runner.from_cfg(config).test()
    assert 'coco/bbox_mAP' in metrics
    file = Path(config.test_evaluator.outfile_prefix + '.bbox.json')
    return json.loads(file.read_text()), Path(config.work_dir)


def check_swap(rows, kind):
    """Every layer of the decoder is quantized; boxes keep 8 bits."""
    by_name = {row['name']: row for row in rows}
    decoder = [
        row for name, row in by_name.items() if name.startswith('decoder.')
    ]
    assert decoder
    assert all(row['status'] == 'quantized' for row in decoder)
    attentions = [row for row in decoder if row['softmax_bits'] is not None]
    assert len(attentions) == 4
    assert {row['softmax_bits'] for row in attentions} == {8}
    assert {row['attention_bits'] for row in attentions} == {8}
    for name in BOX_LAYERS[kind]:
        assert by_name[name]['weight_bits'] == 8, name
    assert by_name['decoder.layers.1.ffn.layers.1']['weight_bits'] == 4


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'method'), CASES)
def test_from_float_to_tested_file(
    kind, method, build_detr, detr_config, tmp_path
):
    path = tmp_path / 'float.pth'
    model = build_detr(kind)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    hook = read_hook(method)
    found, work_dir = run(detr_config(kind, checkpoint=path, hook=hook))
    assert len(found) == 2 * 12
    swap = json.loads((work_dir / 'swap_report.json').read_text())
    check_swap(swap['modules'], kind)

    report = json.loads((work_dir / 'quantization_report.json').read_text())
    units = report['reconstruction']['units']
    trained = [unit['name'] for unit in units if unit['steps'] == 2]
    assert {'decoder.layers.0', 'decoder.layers.1'} <= set(trained)
    # The whole network comes last, with the distillation loss alone.
    distilled = method.startswith('drd')
    assert (units[-1]['name'] == '') is distilled
    centered = [
        entry['name']
        for rewrite in report['rewrites']
        for entry in rewrite['entries']
        if entry['status'] == 'applied'
    ]
    assert bool(centered) is method.endswith('centering')
    if distilled:
        assert units[-1]['steps'] == 2
        assert math.isfinite(units[-1]['loss_end'])
        loss = report['reconstruction']['loss']
        assert loss['steps'] >= 2
        # The float model was confident of something, and it was matched.
        assert loss['pairs_per_image'] > 0

    again, _ = run(
        detr_config(kind, checkpoint=work_dir / 'quantized.pth', hook={})
    )
    assert again == found
