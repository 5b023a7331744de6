"""Make the page on quantized files: load models, measure, draw, write."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from taskptq.analysis.page.content import (
    file_entry,
    float_entry,
    page_content,
    titles_of,
)
from taskptq.analysis.page.noise import measure_noise, summarize
from taskptq.analysis.page.pictures import choose
from taskptq.analysis.page.render import check_packages, write
from taskptq.analysis.page.side_files import float_metrics_beside
from taskptq.analysis.page.tensors import (
    activation_shapes,
    weight_shapes,
    worst,
)
from taskptq.core.progress import Progress
from taskptq.core.rules import Number, Whole
from taskptq.core.settings import check_fields, setting
from taskptq.engine.checkpoint_file import local_file
from taskptq.engine.config_model import load_config
from taskptq.engine.contexts import shared_log
from taskptq.engine.page_models import PageModels, class_names
from taskptq.engine.page_rows import ImageRow, predict_row
from taskptq.engine.pipeline import run_batch
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.quantized_file import QuantizedFile, open_file

__all__ = ['PageSettings', 'make_page']


NEEDS_CONFIG = (
    'a config is needed to run the model: taskptq report CONFIG FILE.pth'
)
NEEDS_FLOAT = (
    'comparing with the float model needs its weights: add --float FLOAT.pth'
)
NOTHING_TO_DRAW = (
    'predictions of this model hold neither boxes, masks, polylines nor maps '
    'of classes'
)


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """How much a page shows.

    Args:
        num_images: Test images that predictions are compared on.
        layer_images: Of them, those that layers are measured on.
        score: Least confidence of objects.
        num_worst: Pictures of images on which the models differ most.
        num_typical: Pictures of other images.
        num_tensors: Distributions to draw, half of them weights.
    """

    num_images: int = setting(16, Whole(low=1, high=10_000))
    layer_images: int = setting(4, Whole(low=1, high=10_000))
    score: float = setting(0.3, Number(low=0, high=1))
    num_worst: int = setting(3, Whole(low=0, high=100))
    num_typical: int = setting(3, Whole(low=0, high=100))
    num_tensors: int = setting(12, Whole(low=0, high=100))

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, name='report')


@dataclass(kw_only=True)
class _Subject:
    """One quantized file and its models."""

    file: QuantizedFile
    title: str
    entry: dict[str, Any]


def make_page(
    files: Sequence[str | Path],
    *,
    out: str | Path,
    config: Config | str | Path | None = None,
    float_checkpoint: str | Path | None = None,
    settings: PageSettings | None = None,
    device: str | torch.device = 'cpu',
    trust_checkpoint: bool = False,
    float_folder: str | Path | None = None,
    commands: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a page on quantized files, and its content as JSON beside it.

    Args:
        files: Quantized files of one float model.
        out: HTML file.
        config: Config of the float model; None shows what the files say.
        float_checkpoint: Float weights to compare with.
        settings: How much to show.
        device: Where the models run.
        trust_checkpoint: Unpickle a float checkpoint that is not plain.
        float_folder: Folder in which the float model was tested; its
            metrics are also found beside the files.
        commands: Command lines to show.

    Returns:
        The content.

    Raises:
        FileNotFoundError: If a file does not exist.
        MissingPackageError: If jinja2 or matplotlib is not installed.
        QuantizedCheckpointError: If a file is damaged or of another model.
        ValueError: If the float checkpoint does not fit.
    """
    check_packages()
    start = time.perf_counter()
    settings = settings or PageSettings()
    subjects = _open(files)
    absent: dict[str, str] = {}
    pictures: list[dict[str, Any]] = []
    float_path = (
        None if float_checkpoint is None else local_file(float_checkpoint)
    )
    if config is None:
        absent |= dict.fromkeys(('noise', 'tensors', 'pictures'), NEEDS_CONFIG)
    else:
        models = PageModels(
            load_config(config),
            float_path=float_path,
            device=device,
            trust=trust_checkpoint,
        )
        with shared_log():
            pictures = _measure(subjects, models, settings, absent)
    content = page_content(
        [subject.entry for subject in subjects],
        float_model=_float_model(
            subjects,
            float_path,
            absent,
            config=_name_of(config),
            folder=float_folder,
        ),
        pictures=pictures,
        absent=absent,
        settings={
            **vars(settings),
            'config': None if config is None else _name_of(config),
            'compared': float_path is not None,
            'commands': list(commands),
            'date': time.strftime('%Y-%m-%d'),
            'seconds': time.perf_counter() - start,
        },
    )
    write(content, Path(out))
    return content


def _open(files: Sequence[str | Path]) -> list[_Subject]:
    """Read the files, all of them before any work.

    Raises:
        QuantizedCheckpointError: If one is damaged or no quantized file.
    """
    opened = [open_file(path) for path in files]
    for file in opened:
        if file.fault:
            raise QuantizedCheckpointError(f'{file.path}: {file.fault}')
    return [
        _Subject(file=file, title=title, entry=file_entry(file, title=title))
        for file, title in zip(opened, titles_of(opened), strict=True)
    ]


def _float_model(
    subjects: Sequence[_Subject],
    path: Path | None,
    absent: dict[str, str],
    *,
    config: str,
    folder: str | Path | None,
) -> dict[str, Any]:
    """Return what is known of the float model; note what is missing."""
    folders = [] if folder is None else [Path(folder)]
    folders += [subject.file.path.parent for subject in subjects]
    first = subjects[0].file.path.name
    digest = ''
    if path is not None:
        folders.append(path.parent)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # Where taskptq test writes by itself.
    folders.append(Path('work_dirs', Path(config).stem))
    metrics = float_metrics_beside(folders, digest=digest)
    classes = float_metrics_beside(folders, digest=digest, key='classes')
    if not any(subject.entry['metrics'] for subject in subjects):
        absent['metrics'] = f'measure it with: taskptq test {config} {first}'
    elif not metrics:
        name = 'FLOAT.pth' if path is None else path.name
        absent['float_metrics'] = (
            'The float model was not measured. To compare, run taskptq test '
            f'{config} {name}, then this report again; if the test had a '
            '--work-dir, name it as --float-folder.'
        )
    return float_entry(
        path, file=subjects[0].file, metrics=metrics, classes=classes
    )


def _name_of(config: Config | str | Path | None) -> str:
    """Return the file name of a config, for messages."""
    path = config.filename if isinstance(config, Config) else config
    return 'CONFIG' if path is None else Path(path).name


def _measure(
    subjects: Sequence[_Subject],
    models: PageModels,
    settings: PageSettings,
    absent: dict[str, str],
) -> list[dict[str, Any]]:
    """Measure every file and return the pictures.

    Args:
        subjects: The files; what is measured goes into their entries.
        models: Builds the models.
        settings: How much to show.
        absent: Section -> why it is missing; filled in.
    """
    quantized = {s.title: models.quantized(s.file) for s in subjects}
    clean = models.float_model()
    try:
        batches = models.batches(settings.num_images)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        reason = f'the test images could not be read: {error}'
        absent |= dict.fromkeys(('noise', 'tensors', 'pictures'), reason)
        return []
    some = batches[: settings.layer_images]
    for subject in subjects:
        twin = None
        try:
            twin = models.twin(subject.file)
        except ValueError as error:
            absent['noise'] = (
                'the float model cannot take the structure of '
                f'{subject.file.path.name}: {error}'
            )
        _measure_layers(
            subject, quantized[subject.title], twin, some, settings
        )
    if clean is None:
        absent |= dict.fromkeys(('noise', 'pictures'), NEEDS_FLOAT)
    return _pictures(subjects, quantized, clean, batches, settings, absent)


def _measure_layers(
    subject: _Subject,
    model: nn.Module,
    twin: nn.Module | None,
    batches: Sequence[Any],
    settings: PageSettings,
) -> None:
    """Measure the noise of the layers and the distributions of tensors."""
    shapes = activation_shapes(model, batches, forward=run_batch)
    weights = []
    if twin is not None:
        layers = measure_noise(twin, model, batches, forward=run_batch)
        subject.entry['noise'] = summarize(layers)
        most = settings.num_tensors // 2
        weights = worst(weight_shapes(twin, model), most=most)
    inputs = worst(shapes, most=settings.num_tensors - len(weights))
    drawn = [*inputs, *weights]
    subject.entry['tensors'] = [shape.to_dict() for shape in drawn]


def _pictures(
    subjects: Sequence[_Subject],
    models: dict[str, nn.Module],
    clean: nn.Module | None,
    batches: Sequence[Any],
    settings: PageSettings,
    absent: dict[str, str],
) -> list[dict[str, Any]]:
    """Compare the predictions of all models and draw some images."""
    rows: list[ImageRow] = []
    with Progress('compare predictions', total=len(batches)) as shown:
        for batch in batches:
            row = predict_row(models, clean, batch, score=settings.score)
            rows.append(row)
            shown.advance()
    if all(row.is_empty for row in rows):
        absent['pictures'] = NOTHING_TO_DRAW
        return []
    for subject in subjects:
        subject.entry['disagreement'] = [
            row.agreements[subject.title].score
            for row in rows
            if subject.title in row.agreements
        ]
    chosen = choose(
        [row.score for row in rows],
        busy=[not row.is_empty for row in rows],
        worst=settings.num_worst,
        typical=settings.num_typical,
    )
    return [
        rows[index].picture(
            kind='' if clean is None else kind,
            classes=class_names(subjects[0].file),
            score=settings.score,
        )
        for index, kind in chosen
    ]
