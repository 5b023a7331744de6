import dataclasses
import json

import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from onnx import TensorProto, helper

from taskptq.engine.onnx_metadata import (
    OnnxMetadata,
    open_parts,
    part_path,
    read_metadata,
)
from taskptq.export.runtime import OnnxFile, OnnxFileError

META = OnnxMetadata(
    parts=['network', 'head'],
    export='one',
    model='Net',
    config='net_coco',
    recipe='w8a8',
    digest='ab',
    target='onnxruntime',
    input_size=[32, 48],
    classes=['a', 'b'],
    preprocessing=[{'step': 'normalize'}],
    decoding={'kind': 'classes'},
)


def file_of(texts, path='m.onnx'):
    return OnnxFile(path=path, content=b'', metadata=texts)


def test_metadata_is_read_as_it_was_written():
    assert read_metadata(file_of(META.to_texts())) == META
    dynamic = dataclasses.replace(META, input_size=None, decoding=None)
    assert read_metadata(file_of(dynamic.to_texts())) == dynamic


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model': '5'}, r'entry taskptq.model is 5'),
        ({'parts': '"network"'}, 'taskptq.parts'),
        ({'parts': '[1]'}, 'must be names'),
        ({'digest': 'null'}, 'taskptq.digest is None'),
        ({'decoding': '{'}, 'is not JSON'),
        ({'decoding': '[' * 100000}, 'is not JSON'),
    ],
)
def test_damaged_entries(changes, message):
    texts = META.to_texts()
    texts |= {f'taskptq.{key}': text for key, text in changes.items()}
    with pytest.raises(OnnxFileError, match=message):
        read_metadata(file_of(texts))


def test_a_foreign_file():
    with pytest.raises(OnnxFileError, match='not written by taskptq export'):
        read_metadata(file_of({'author': 'someone'}))


@pytest.fixture
def export(tmp_path):
    def write(part, **changes):
        meta = dataclasses.replace(META, part=part, **changes)
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
            for name in 'xy'
        ]
        graph = helper.make_graph(
            [helper.make_node('Relu', ['x'], ['y'])],
            'g',
            *map(list, zip(ports)),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8
        )
        helper.set_model_props(model, meta.to_texts())
        path = part_path(tmp_path / 'm.onnx', part)
        path.write_bytes(model.SerializeToString())
        return path

    return write


def test_all_parts_are_opened(export):
    path = export('network')
    export('head')
    meta, sessions = open_parts(path, threads=1)
    assert meta == META
    assert list(sessions) == ['network', 'head']


def test_parts_of_two_exports_are_refused(export):
    path = export('network')
    with pytest.raises(FileNotFoundError, match=r'm\.head\.onnx'):
        open_parts(path)
    export('head', export='two')
    with pytest.raises(OnnxFileError, match='not of the same export'):
        open_parts(path)


def test_a_part_is_not_the_whole(export):
    with pytest.raises(OnnxFileError, match='only the part head'):
        open_parts(export('head'))


def test_parts_lie_beside_the_file(export):
    path = export('network', parts=['network', '../other'])
    with pytest.raises(OnnxFileError, match='which does not name a layer'):
        open_parts(path)


def test_texts_are_json():
    assert json.loads(META.to_texts()['taskptq.input_size']) == [32, 48]
