"""The users' commands on a file of the zoo."""

from pathlib import Path

import pytest

from taskptq.bench.zoo.work import build, command_line, evaluate, export


def test_the_command_names_all_that_makes_the_file(write_zoo):
    (file,) = write_zoo(files=[{'recipe': ['w8a8_mse', 'a b.py'], 'seed': 4}])
    assert command_line(file) == (
        'taskptq quantize configs/tiny/net_toy.py float.pth --recipe '
        "w8a8_mse --recipe 'a b.py' --num-images 16 --seed 4 --device cpu "
        '--out q.pth'
    )


@pytest.mark.parametrize('dynamic', [False, True])
def test_an_export_is_of_the_listed_kind(
    write_zoo, pretend, tmp_path, dynamic
):
    entry = {'recipe': 'w8a8_mse', 'onnx': True, 'dynamic': dynamic}
    entry |= {'export_images': 64} if dynamic else {}
    (file,) = write_zoo(files=[entry])
    seen = []
    plain = pretend.export
    pretend.export = lambda words: (seen.extend(words), plain(words))
    export(file, Path('q.pth'), tools=pretend.tools(), folder=tmp_path)
    assert ('--dynamic' in seen) == dynamic
    assert (seen[-2:] == ['--num-images', '64']) == dynamic


def test_only_finite_metrics_count(zoo_files, pretend, tmp_path):
    file = zoo_files[0]
    made = build(file, tools=pretend.tools(), folder=tmp_path)
    metrics = evaluate(file, made, tools=pretend.tools(), folder=tmp_path)
    assert metrics == {'coco/AP': 0.2844}


def test_a_metric_that_is_not_there_is_named(zoo_files, pretend, tmp_path):
    file = zoo_files[0]
    pretend.metrics = {'mIoU': 65.0}
    made = build(file, tools=pretend.tools(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"'coco/AP', but .* gives mIoU"):
        evaluate(file, made, tools=pretend.tools(), folder=tmp_path)


def test_an_interrupted_run_goes_on(zoo_files, pretend, tmp_path):
    file, tools = zoo_files[0], pretend.tools()

    def run(resume):
        made = build(file, tools=tools, folder=tmp_path, resume=resume)
        evaluate(file, made, tools=tools, folder=tmp_path, resume=resume)
        export(file, made, tools=tools, folder=tmp_path, resume=resume)

    run(resume=True)
    assert pretend.calls == ['quantize', 'test .pth', 'export']
    run(resume=True)
    assert len(pretend.calls) == 3
    run(resume=False)
    assert len(pretend.calls) == 6


def test_other_bytes_are_evaluated_anew(zoo_files, pretend, tmp_path):
    file, tools = zoo_files[0], pretend.tools()
    made = build(file, tools=tools, folder=tmp_path)
    evaluate(file, made, tools=tools, folder=tmp_path, resume=True)
    made.write_bytes(b'other codes')
    evaluate(file, made, tools=tools, folder=tmp_path, resume=True)
    assert pretend.calls == ['quantize', 'test .pth', 'test .pth']
