from taskptq.export.onnx.report import ExportReport


def test_it_is_plain_and_readable():
    report = ExportReport(
        path='a.onnx',
        target='onnxruntime',
        opset=21,
        added={'t': 'new'},
        padded=['cls'],
        decomposed=['softmax'],
        checks={'outputs': {'y': {'db': 40}}, 'float_layers': list('abcdef')},
    )
    text = report.text()
    for part in ('1 grids added', 'cls', 'softmax', 'y: db 40', 'layers: 6'):
        assert part in text
    assert report.to_dict()['added'] == {'t': 'new'}
