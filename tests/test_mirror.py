"""Every module of taskptq has a test file in the same place of tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'taskptq'

# Files that hold rows or one call, and nothing to test by itself.
EXCEPTIONS = {
    '__main__.py': 'calls cli.main',
    'version.py': 'one line, which the tests of the wheel read',
    'hosts/mmcv.py': 'rows, which test_hosts/test_registry.py reads',
    'hosts/mmdet.py': 'rows, which test_hosts/test_registry.py reads',
    'hosts/mmseg.py': 'rows, which test_hosts/test_registry.py reads',
    'hosts/segment_anything.py': 'rows, as above',
    'hosts/tiny_models.py': 'rows, as above',
    'hosts/torch.py': 'rows, as above',
    'robustness/arrays.py': 'one alias',
}
DISTILLED = 'test_qat/test_distillation'
# Modules that only run as a part of something -> the file that runs it.
ELSEWHERE = {
    'cli/predict.py': 'test_engine/test_onnx_predict.py',
    'cli/export.py': 'test_engine/test_onnx_export.py',
    'cli/benchmark.py': 'test_engine/test_onnx_predict.py',
    'cli/bench_training.py': 'test_bench/test_training_table.py',
    'cli/draw_boxes.py': 'test_cli/test_detr_report.py',
    'cli/publish.py': 'test_engine/test_tools.py',
    'cli/quantize.py': 'test_engine/test_tools.py',
    'export/quantized_file.py': 'test_cli/test_info.py',
    'cli/test.py': 'test_engine/test_tools.py',
    'cli/train.py': 'test_engine/test_tools.py',
    'qat/calibration.py': 'test_qat/test_hook.py',
    'qat/checkpoint.py': 'test_qat/test_hook.py',
    'qat/checks.py': 'test_qat/test_hook.py',
    'qat/model.py': 'test_qat/test_hook.py',
    'qat/optimizer.py': 'test_qat/test_hook.py',
    'qat/distillation/config.py': f'{DISTILLED}/test_view_config.py',
    'qat/distillation/decoder.py': f'{DISTILLED}/test_queries.py',
    'qat/distillation/logits.py': f'{DISTILLED}/test_view_config.py',
    'qat/distillation/region.py': f'{DISTILLED}/test_regions.py',
    'qat/distillation/scene.py': f'{DISTILLED}/test_views.py',
    'qat/distillation/view.py': f'{DISTILLED}/test_views.py',
    'qat/finish.py': 'test_qat/test_hook.py',
    'qat/grids.py': 'test_qat/test_stages.py',
    'qat/learning.py': 'test_qat/test_stages.py',
    'qat/settings.py': 'test_qat/test_stages.py',
    'qat/structure.py': 'test_qat/test_stages.py',
    'qat/teacher.py': f'{DISTILLED}/test_queries.py',
}


def modules() -> list[Path]:
    """Python files of the package, relative to it."""
    return sorted(
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob('*.py')
        if path.name != '__init__.py' and not is_recipe(path)
    )


def is_recipe(path: Path) -> bool:
    """Whether a file only assigns settings, as recipes do."""
    folder = PACKAGE / 'recipes'
    return path.parent == folder and not any(
        line.startswith(('def ', 'class '))
        for line in path.read_text(encoding='utf-8').splitlines()
    )


def mirror(module: Path) -> Path:
    """The test file of a module."""
    parts = [f'test_{part}' for part in module.with_suffix('').parts]
    return (ROOT / 'tests').joinpath(*parts).with_suffix('.py')


def test_every_module_has_its_test_file():
    missing = [
        f'{module} -> {mirror(module).relative_to(ROOT)}'
        for module in modules()
        if module.as_posix() not in EXCEPTIONS | ELSEWHERE
        and not mirror(module).is_file()
    ]
    assert not missing, '\n'.join(missing)


def test_exceptions_are_files():
    for name in EXCEPTIONS | ELSEWHERE:
        assert (PACKAGE / name).is_file(), f'{name} is gone'
    for name in ELSEWHERE.values():
        assert (ROOT / 'tests' / name).is_file(), f'{name} is gone'
