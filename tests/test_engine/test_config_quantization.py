from pathlib import Path

import pytest
from mmengine.config import Config

from taskptq.engine.config_quantization import (
    choose_work_dir,
    quantize_config,
)


@pytest.mark.parametrize(
    ('work_dir', 'out', 'folder'),
    [
        ('work', 'out/q.pth', 'work'),
        (None, 'out/q.pth', 'out'),
        (None, None, 'work_dirs/model_ptq'),
    ],
)
def test_folder_of_reports(work_dir, out, folder):
    config = Config({})
    assert choose_work_dir(config, work_dir=work_dir, out=out) == Path(folder)


def test_folder_is_named_after_the_config(tiny_config, tiny_path):
    found = choose_work_dir(tiny_config, work_dir=None, out=None)
    assert found.name == f'{Path(tiny_path).stem}_ptq'


@pytest.mark.parametrize('blocked', ['work_dir', 'out'])
def test_nothing_is_read_where_nothing_can_be_written(
    tiny_config, tmp_path, blocked
):
    (tmp_path / 'file').touch()
    paths = {'work_dir': tmp_path / 'free', 'out': tmp_path / 'q.pth'}
    paths[blocked] = tmp_path / 'file' / 'q.pth'
    with pytest.raises(ValueError, match=blocked):
        quantize_config(
            tiny_config,
            tmp_path / 'lacking.pth',
            parts={'qconfig': {}},
            calibration={},
            device='cpu',
            seed=0,
            resume=True,
            trust_checkpoint=False,
            meta={},
            **paths,
        )


def test_the_file_is_written_beside_the_reports(
    tiny_config, float_checkpoint, tmp_path
):
    _, report = quantize_config(
        tiny_config,
        float_checkpoint,
        parts={'qconfig': {}},
        calibration={'num_images': 4},
        out=None,
        work_dir=tmp_path / 'work',
        device='cpu',
        seed=0,
        resume=True,
        trust_checkpoint=False,
        meta={'recipe': 'own'},
    )
    assert Path(report['checkpoint']) == tmp_path / 'work/quantized.pth'
    assert (tmp_path / 'work/quantized.pth').is_file()
    assert (tmp_path / 'work/swap_report.txt').is_file()
