"""Quantize the models of the study and measure them under noise.

    python projects/robustness/measure.py retinanet segformer
    python projects/robustness/measure.py yolox --max-images 30

Runs ``taskptq quantize`` and ``taskptq bench robustness`` from the top of the
checkout and keeps the results in projects/robustness/results. What is there
already is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path('projects/robustness/results')
WORK_DIR = Path('work_dirs/robustness')
FAMILIES = ('systems', 'corruptions', 'attacks')


@dataclass(frozen=True, kw_only=True)
class Study:
    """One model of the study.

    Args:
        config: Config of the float model.
        checkpoint: Float checkpoint.
        recipes: Recipes to quantize with.
        files: Patterns of quantized and exported files of the zoo, whose
            names end with their digest.
        calibration: Number of calibration images.
        steps: Steps of each unit of recipes that learn by QDrop.
        mixes: Name -> noises of calibration images, each with every seed.
        seeds: Seeds of the mixes.
    """

    config: str
    checkpoint: str
    recipes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    calibration: int = 64
    steps: int = 300
    mixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


# Does calibrating on noisy images help? Half of them are as they are.
MIXES = {
    'clean': ('clean',),
    'noisy': (
        'clean',
        'gaussian_noise=3',
        'clean',
        'fog=3',
        'clean',
        'contrast=3',
    ),
}
STUDIES = {
    'retinanet': Study(
        config='configs/retinanet/retinanet_r18-half_fpn_bccd.py',
        checkpoint='configs/retinanet/checkpoints/'
        'retinanet_r18-half_fpn_bccd.pth',
        recipes=(
            'w8a8_mse',
            'w4a8_mse',
            'w4a4_mse',
            'w4a4_gptq',
            'w4a4_qdrop',
        ),
    ),
    'retinanet_calibration': Study(
        config='configs/retinanet/retinanet_r18-half_fpn_bccd.py',
        checkpoint='configs/retinanet/checkpoints/'
        'retinanet_r18-half_fpn_bccd.pth',
        recipes=('w4a4_mse',),
        calibration=16,
        mixes=MIXES,
    ),
    'segformer': Study(
        config='configs/segformer/segformer_mit-tiny_camvid.py',
        checkpoint='configs/segformer/checkpoints/'
        'segformer_mit-tiny_camvid.pth',
        recipes=('w8a8_mse', 'w4a8_mse', 'w4a4_mse', 'w4a4_qdrop'),
        calibration=32,
        files=(
            'configs/segformer/quantized/'
            'segformer_mit-tiny_w4a8_gptq_camvid-*.pth',
        ),
    ),
    'yolox': Study(
        config='configs/yolox/yolox_nano_coco-mini.py',
        checkpoint='data/weights/yolox_nano_coco.pth',
        recipes=('w8a8_mse', 'w4a4_qdrop-matched-depthwise8'),
        steps=100,
        files=(
            'configs/yolox/quantized/yolox_nano_w8a8_coco-mini-*.pth',
            'configs/yolox/quantized/'
            'yolox_nano_w8a8_mse-depthwise_coco-mini-*.pth',
            'configs/yolox/quantized/'
            'yolox_nano_w4a8_gptq-matched_coco-mini-*.pth',
        ),
    ),
    # mPC on the whole set: --noise corruptions --max-images 164
    # --severities 1 2 3 4 5
    'yolox_full': Study(
        config='configs/yolox/yolox_nano_coco-mini.py',
        checkpoint='data/weights/yolox_nano_coco.pth',
        files=(
            'configs/yolox/quantized/'
            'yolox_nano_w8a8_mse-depthwise_coco-mini-*.pth',
            'configs/yolox/quantized/'
            'yolox_nano_w4a8_gptq-matched_coco-mini-*.pth',
        ),
    ),
    'cgnet': Study(
        config='configs/cgnet/cgnet_m3n21_camvid.py',
        checkpoint='data/weights/cgnet_camvid.pth',
        recipes=('w4a8_mse-depthwise', 'w4a4_qdrop-depthwise'),
        calibration=16,
        steps=100,
        files=(
            'configs/cgnet/quantized/'
            'cgnet_m3n21_w8a8_mse-depthwise_camvid-*.pth',
            'configs/cgnet/quantized/'
            'cgnet_m3n21_w8a8_mse-depthwise_camvid-*.onnx',
            'configs/cgnet/quantized/'
            'cgnet_m3n21_w4a8_gptq-depthwise_camvid-*.pth',
        ),
    ),
    # python -m lane_detection.convert_lstr data/weights/lstr_culane.pkl OUT
    'lstr': Study(
        config='projects/lane_detection/configs/lstr_r18s_culane-mini.py',
        checkpoint='work_dirs/lstr/lstr_culane.pth',
        recipes=('w4a8_mse', 'w4a4_gptq', 'w4a4_qdrop'),
        files=(
            'projects/lane_detection/configs/quantized/'
            'lstr_r18s_w8a8_mse_culane-mini-*.pth',
            'projects/lane_detection/configs/quantized/'
            'lstr_r18s_w4a8_gptq_culane-mini-*.pth',
        ),
    ),
    'lstr_calibration': Study(
        config='projects/lane_detection/configs/lstr_r18s_culane-mini.py',
        checkpoint='work_dirs/lstr/lstr_culane.pth',
        recipes=('w4a8_mse',),
        calibration=32,
        mixes=MIXES,
    ),
}


def call(words: Sequence[str]) -> None:
    """Run a command of taskptq.

    Raises:
        SystemExit: If it fails.
    """
    print('taskptq', *words, flush=True)
    done = subprocess.run([sys.executable, '-m', 'taskptq', *words])
    if done.returncode:
        raise SystemExit(f'taskptq {words[0]} failed: see above')


def quantized_files(name: str, study: Study) -> list[str]:
    """Quantize with the recipes whose files are missing."""
    folder = WORK_DIR / 'quantized' / name
    folder.mkdir(parents=True, exist_ok=True)
    steps = folder / 'steps.py'
    steps.write_text(f'reconstruction = dict(steps={study.steps})\n')
    files = []
    for recipe in study.recipes:
        # Merged into the recipe.
        more = ['--recipe', steps.as_posix()] if 'qdrop' in recipe else []
        if not study.mixes:
            file = folder / f'{recipe}.pth'
            files.append(quantized(file, study, recipe, *more))
        for mix, noises in study.mixes.items():
            settings = folder / f'{mix}.py'
            settings.write_text(f'calibration = dict(noise={list(noises)})\n')
            files += [
                quantized(
                    folder / f'{recipe}_{mix}-{seed}.pth',
                    study,
                    recipe,
                    *('--seed', str(seed), '--calib', settings.as_posix()),
                )
                for seed in study.seeds
            ]
    return [*files, *map(zoo_file, study.files)]


def zoo_file(pattern: str) -> str:
    """Return the one file of the zoo with this name and any digest.

    Raises:
        SystemExit: If none or several match.
    """
    matches = sorted(Path().glob(pattern))
    if len(matches) != 1:
        raise SystemExit(
            f'{pattern} matches {len(matches)} files instead of one: run this '
            'at the top of the checkout, after taskptq bench zoo --write'
        )
    return matches[0].as_posix()


def quantized(file: Path, study: Study, recipe: str, *more: str) -> str:
    """Quantize into a file that is missing, and return its path."""
    if not file.is_file():
        call(
            [
                'quantize',
                study.config,
                study.checkpoint,
                '--recipe',
                recipe,
                '--num-images',
                str(study.calibration),
                '--out',
                file.as_posix(),
                *more,
            ]
        )
    return file.as_posix()


def measure(name: str, args: argparse.Namespace) -> None:
    """Measure one model, and keep what came out."""
    study = STUDIES[name]
    folder = WORK_DIR / name
    kept = RESULTS / f'{name}.json'
    folder.mkdir(parents=True, exist_ok=True)
    if kept.is_file() and not (folder / 'robustness.json').is_file():
        shutil.copyfile(kept, folder / 'robustness.json')
    call(
        [
            'bench',
            'robustness',
            study.config,
            study.checkpoint,
            *quantized_files(name, study),
            *(
                ['--only', *args.only]
                if args.only
                else ['--noise', *args.noise]
            ),
            '--max-images',
            str(args.max_images),
            '--severities',
            *map(str, args.severities),
            '--epsilons',
            *map(str, args.epsilons),
            '--out',
            folder.as_posix(),
            *(['--processes', str(args.processes)] if args.processes else []),
        ]
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / 'robustness.json', kept)
    shutil.copyfile(folder / 'robustness.png', kept.with_suffix('.png'))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Measure the study')
    parser.add_argument('models', nargs='+', choices=list(STUDIES))
    parser.add_argument(
        '--noise', nargs='+', choices=FAMILIES, default=list(FAMILIES)
    )
    parser.add_argument('--only', nargs='+', help='rows by name instead')
    parser.add_argument('--max-images', type=int, default=16)
    parser.add_argument('--severities', nargs='+', type=int, default=[1, 3, 5])
    parser.add_argument('--epsilons', nargs='+', type=float, default=[2, 8])
    parser.add_argument('--processes', type=int)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure some models."""
    args = parse_args(argv)
    for name in args.models:
        measure(name, args)


if __name__ == '__main__':
    main()
