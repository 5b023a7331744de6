"""``taskptq info`` and ``taskptq report`` on a small quantized file."""

import json

import pytest
import torch
from plain_detector import PlainDetector, images

import taskptq
from taskptq.cli import info, report
from taskptq.export import load
from taskptq.export.quantized_file import open_file
from taskptq.export.schema import compute_digest


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quantized')
    torch.manual_seed(0)
    taskptq.quantize(
        PlainDetector().eval(),
        [(images(0),), (images(1),)],
        recipe=[
            'w4a4_qdrop',
            dict(
                reconstruction=dict(steps=3, batch_size=2),
                qconfig=dict(keep_float=['body.2.0'], edges=['head']),
            ),
        ],
        out=folder / 'q.pth',
    )
    return folder


@pytest.fixture
def changed(folder, tmp_path):
    """Write the file once more, with a change of its payload."""

    def changed(change, *, digest=True):
        payload = dict(load(folder / 'q.pth'))
        change(payload)
        if digest:
            payload['digest'] = compute_digest(payload)
        torch.save(payload, tmp_path / 'changed.pth')
        return str(tmp_path / 'changed.pth')

    return changed


def facts_of(path, capsys):
    info.main([str(path), '--json'])
    return json.loads(capsys.readouterr().out)


def test_facts(folder, capsys):
    path = folder / 'q.pth'
    facts = facts_of(path, capsys)
    assert facts['model'] == 'PlainDetector'
    assert facts['recipe'] == 'w4a4_qdrop + own settings'
    assert facts['parts'] == [
        'reconstruction (scope block, rounding adaround, drop_prob 0.5)'
    ]
    assert (facts['version'], facts['schema']) == (taskptq.__version__, 2)
    assert facts['bits'] == {
        'weight': {'8': 2, '4': 1},
        'activation': {'8': 2, '4': 1},
    }
    assert facts['num_weights'] == 3
    assert facts['file_bytes'] == path.stat().st_size
    assert facts['verified']
    # Numbers of PlainDetector: convolutions of 8*27, 16*72 and 16*144
    # weights, a linear layer of 80, biases of 40 + 5 (norms are folded).
    packed, rest = 216 + 1152 + 80, 2304 + 45
    assert facts['float_bytes'] == 4 * (packed + rest)
    assert facts['packed_bytes'] == 216 + 1152 // 2 + 80
    assert facts['share_of_parameters'] == packed / (packed + rest)
    assert 0 < facts['share_of_macs'] < 1


def test_text(folder, capsys):
    info.main([str(folder / 'q.pth')])
    lines = capsys.readouterr().out.splitlines()
    assert 'model       PlainDetector' in lines
    assert 'weights     8 bits (2 layers), 4 bits (1 layer)' in lines
    assert lines[-1].endswith('(verified)')


def test_an_altered_file_is_shown_and_fails(changed, capsys):
    def alter(payload):
        payload['recipe']['seed'] += 1

    with pytest.raises(SystemExit) as caught:
        info.main([changed(alter, digest=False)])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith('(NOT VERIFIED)')
    assert 'does not match its contents' in lines[-1]
    with pytest.raises(SystemExit):
        report.main([changed(alter, digest=False)])


def test_files_that_name_neither_model_nor_recipe(changed, capsys):
    path = changed(lambda payload: payload['meta'].clear())
    info.main([path])
    lines = capsys.readouterr().out.splitlines()
    assert 'model       not recorded' in lines
    assert any(
        line.startswith('recipe      no name recorded; reconstruction')
        for line in lines
    )


def hostile(payload):
    payload['meta'] |= {'model': 'A\x1b[2J\nB', 'dataset_meta': 'none'}
    payload['recipe'] |= {'rewrites': 'x', 'reconstruction': 7, 'loss': []}


def test_text_of_a_file_steers_no_terminal(changed, capsys):
    info.main([changed(hostile)])
    text = capsys.readouterr().out
    assert 'model       A?[2J?B' in text
    assert '\x1b' not in text


@pytest.mark.parametrize('key', ['products', 'decisions'])
def test_impossible_structure_is_refused(changed, key):
    def alter(payload):
        payload['structure'][key] = {'products': 3}

    with pytest.raises(SystemExit, match=r'changed\.pth: '):
        report.main([changed(alter)])


def test_a_module_of_a_pickle_is_not_imported(tmp_path):
    torch.save({'taskptq': PlainDetector}, tmp_path / 'stranger.pth')
    with pytest.raises(SystemExit, match='is not a quantized file') as caught:
        info.main([str(tmp_path / 'stranger.pth')])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'state_dict': {}}, 'but a float checkpoint: quantize it first'),
        ({'taskptq_qat': {}}, 'quantization-aware training: test it with'),
        ([1, 2], 'it holds a list'),
        (
            {'taskptq': {'schema': 99, 'version': '9'}},
            r'x\.pth: the quantized checkpoint has schema 99',
        ),
    ],
)
@pytest.mark.parametrize('command', [info, report], ids=['info', 'report'])
def test_other_files_are_refused_in_one_sentence(
    command, content, message, tmp_path
):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(SystemExit, match=message) as caught:
        command.main([str(tmp_path / 'x.pth')])
    assert '\n' not in str(caught.value)


def test_exported_files_are_described_by_others(capsys):
    with pytest.raises(SystemExit, match=r'm\.onnx is an exported file: give'):
        info.main(['m.onnx'])


@pytest.mark.parametrize('command', [info, report], ids=['info', 'report'])
def test_no_file(command, tmp_path):
    with pytest.raises(SystemExit, match='there is no file'):
        command.main([str(tmp_path / 'none.pth')])


def test_rows_are_those_of_the_swap(folder):
    """The file alone tells what swap_report.json says."""
    written = json.loads((folder / 'swap_report.json').read_text())
    swap = open_file(folder / 'q.pth').swap_report()
    assert swap.summary() == written['summary']
    assert swap.folded == written['folded_norms']
    for row in swap.rows:
        expected = next(r for r in written['modules'] if r['name'] == row.name)
        for key in (
            'status',
            'weight_bits',
            'activation_bits',
            'macs',
            'macs_quantized',
        ):
            assert getattr(row, key) == expected[key], (row.name, key)
    assert {row.name for row in swap.rows} == {
        row['name'] for row in written['modules']
    }


def test_report_as_text(folder, capsys):
    report.main([str(folder / 'q.pth')])
    text = capsys.readouterr().out
    assert 'model       PlainDetector' in text
    assert 'body.2.0' in text.split('Products that run in float')[1]
    assert 'keep_float' in text


def test_report_as_json(folder, capsys):
    report.main([str(folder / 'q.pth'), '--json'])
    content = json.loads(capsys.readouterr().out)
    assert content['file']['model'] == 'PlainDetector'
    fates = {row['name']: row['status'] for row in content['layers']}
    assert fates['body.2.0'] == 'float'
    assert fates['head'] == 'quantized'
    assert content['quantization']['reconstruction']['units']


def test_the_report_of_another_file_does_not_count(folder, changed, tmp_path):
    side = tmp_path / 'quantization_report.json'
    path = changed(lambda payload: payload['meta'].clear())
    assert report.quantization_beside(open_file(path)) == {}
    side.write_text((folder / 'quantization_report.json').read_text())
    assert report.quantization_beside(open_file(path)) == {}
    assert (
        report.quantization_beside(open_file(folder / 'q.pth'))['seconds'] > 0
    )
    side.write_text('{')
    assert report.quantization_beside(open_file(path)) == {}


def test_warnings(folder, changed, capsys):
    def alter(payload):
        structure = payload['structure']
        structure['products']['unreached'] = ['mask_head']
        structure['decisions']['left_float'] = {'neck': 'it differs'}
        structure['decisions']['kept_norms'] = {'bn9': 'called twice'}

    report.main([changed(alter)])
    text = capsys.readouterr().out.split('Warnings:\n')[1]
    assert text.splitlines() == [
        '  neck stays float: it differs',
        '  bn9 was not folded into a layer: called twice',
        '  mask_head was called by no traced batch',
    ]


def test_calibration_warnings_come_from_the_side_file():
    swap = report.SwapReport()
    side = {'calibration': {'warnings': ['most images are of one color']}}
    assert report.warnings_of(swap, side) == ['most images are of one color']
