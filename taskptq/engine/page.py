"""Make the page on quantized files: load models, measure, draw, write."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from taskptq.analysis.page.agreement import Agreement, compare
from taskptq.analysis.page.content import (
    file_entry,
    float_entry,
    page_content,
    titles_of,
)
from taskptq.analysis.page.noise import measure_noise, summarize
from taskptq.analysis.page.photos import read_image
from taskptq.analysis.page.pictures import choose, draw
from taskptq.analysis.page.predictions import Prediction, read_prediction
from taskptq.analysis.page.render import check_packages, write
from taskptq.analysis.page.side_files import float_metrics_beside
from taskptq.analysis.page.tensors import (
    activation_shapes,
    weight_shapes,
    worst,
)
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.progress import Progress
from taskptq.core.rules import Number, Whole
from taskptq.core.settings import check_fields, setting
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.config_model import (
    build_model,
    evaluation_source,
    load_config,
)
from taskptq.engine.datasets import read_sample
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.engine.restore import (
    read_decisions,
    read_qconfig,
    restore_model,
)
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
    model: nn.Module | None = None
    twin: nn.Module | None = None


def make_page(
    files: Sequence[str | Path],
    *,
    out: str | Path,
    config: Config | str | Path | None = None,
    float_checkpoint: str | Path | None = None,
    settings: PageSettings | None = None,
    device: str | torch.device = 'cpu',
    trust_checkpoint: bool = False,
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
        maker = _Maker(
            load_config(config),
            float_path=float_path,
            settings=settings,
            device=device,
            trust=trust_checkpoint,
            absent=absent,
        )
        pictures = maker.measure(subjects)
    content = page_content(
        [subject.entry for subject in subjects],
        float_model=_float_model(
            subjects, float_path, absent, config=_name_of(config)
        ),
        pictures=pictures,
        absent=absent,
        settings={
            **vars(settings),
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
) -> dict[str, Any]:
    """Return what is known of the float model; note what is missing."""
    folders = [subject.file.path.parent for subject in subjects]
    first = subjects[0].file.path.name
    digest = ''
    if path is not None:
        folders.append(path.parent)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    metrics = float_metrics_beside(folders, digest=digest)
    if not any(subject.entry['metrics'] for subject in subjects):
        absent['metrics'] = f'measure it with: taskptq test {config} {first}'
    elif not metrics:
        name = 'FLOAT.pth' if path is None else path.name
        absent['float_metrics'] = (
            'The float model was not measured. To compare, test it as well, '
            'with the folder of the quantized file as its --work-dir: '
            f'taskptq test {config} {name} --work-dir FOLDER'
        )
    return float_entry(path, file=subjects[0].file, metrics=metrics)


def _name_of(config: Config | str | Path | None) -> str:
    """Return the file name of a config, for messages."""
    path = config.filename if isinstance(config, Config) else config
    return 'CONFIG' if path is None else Path(path).name


class _Maker:
    """Runs the models of a page.

    Args:
        config: Loaded config of the float model.
        float_path: Float checkpoint, or None.
        settings: How much to show.
        device: Where models run.
        trust: Whether to unpickle what is not plain.
        absent: Section -> why it is missing; filled in.
    """

    def __init__(
        self,
        config: Config,
        *,
        float_path: Path | None,
        settings: PageSettings,
        device: str | torch.device,
        trust: bool,
        absent: dict[str, str],
    ) -> None:
        self.config = config
        self.settings = settings
        self.device = device
        self.absent = absent
        self.float_path = float_path
        self.weights = (
            None
            if float_path is None
            else read_checkpoint(float_path, trust_checkpoint=trust)
        )
        self.classes: list[str] = []

    def measure(self, subjects: Sequence[_Subject]) -> list[dict[str, Any]]:
        """Measure every file; return the pictures."""
        for subject in subjects:
            subject.model = self._quantized(subject.file)
        clean = self._float_model()
        try:
            batches = self._batches()
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            reason = f'the test images could not be read: {error}'
            sections = ('noise', 'tensors', 'pictures')
            self.absent |= dict.fromkeys(sections, reason)
            return []
        for subject in subjects:
            self._measure_layers(subject, batches[: self._num_layer_images()])
        return self._pictures(subjects, clean, batches)

    def _num_layer_images(self) -> int:
        return min(self.settings.layer_images, self.settings.num_images)

    def _quantized(self, file: QuantizedFile) -> nn.Module:
        model = build_model(self.config, device=self.device)
        try:
            restore_model(file.payload, model)
        except QuantizedCheckpointError as error:
            raise QuantizedCheckpointError(f'{file.path}: {error}') from error
        meta = file.payload['meta'].get('dataset_meta')
        if isinstance(meta, Mapping) and not self.classes:
            found = meta.get('classes')
            is_list = isinstance(found, (list, tuple))
            self.classes = [str(name) for name in found] if is_list else []
        return model

    def _float_model(self) -> nn.Module | None:
        """Return the float model with its weights, None without them."""
        if self.weights is None:
            return None
        model = build_model(self.config, device=self.device)
        load_float_weights(model, self.weights, path=self.float_path or '')
        return model

    def _twin(self, file: QuantizedFile) -> nn.Module | None:
        """Return the float weights in the structure of a quantized file.

        Quantizers are off, so it computes what the float model does, in
        layers that have the names of the quantized ones.
        """
        model = self._float_model()
        if model is None:
            self.absent['noise'] = NEEDS_FLOAT
            return None
        try:
            prepare_in_place(
                model,
                read_qconfig(file.payload['recipe']),
                decisions=read_decisions(file.payload, model),
            )
        except ValueError as error:
            self.absent['noise'] = (
                'the float model cannot take the structure of '
                f'{file.path.name}: {error}'
            )
            return None
        return model.to(self.device)

    def _batches(self) -> list[Any]:
        """Return batches of one test image each, spaced evenly."""
        source = evaluation_source(self.config)
        total = len(source.dataset)
        count = min(self.settings.num_images, total)
        if not count:
            raise ValueError('the test set is empty')
        places = [(2 * i + 1) * total // (2 * count) for i in range(count)]
        samples = [read_sample(source.dataset, place) for place in places]
        return [source.collate([s]) for s in samples if s is not None]

    def _measure_layers(
        self, subject: _Subject, batches: Sequence[Any]
    ) -> None:
        assert subject.model is not None
        twin = self._twin(subject.file)
        shapes = activation_shapes(subject.model, batches, forward=run_batch)
        most = self.settings.num_tensors
        weights = []
        if twin is not None:
            layers = measure_noise(
                twin, subject.model, batches, forward=run_batch
            )
            subject.entry['noise'] = summarize(layers)
            weights = worst(weight_shapes(twin, subject.model), most=most // 2)
        inputs = worst(shapes, most=most - len(weights))
        subject.entry['tensors'] = [
            shape.to_dict() for shape in (*inputs, *weights)
        ]

    def _pictures(
        self,
        subjects: Sequence[_Subject],
        clean: nn.Module | None,
        batches: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """Compare the predictions of all models and draw some images."""
        models = {subject.title: subject.model for subject in subjects}
        shown = Progress('compare predictions', total=len(batches))
        rows: list[_Row] = []
        with shown:
            for batch in batches:
                rows.append(self._row(models, clean, batch))
                shown.advance()
        if all(row.is_empty for row in rows):
            self.absent['pictures'] = NOTHING_TO_DRAW
            return []
        if clean is None:
            self.absent['pictures'] = NEEDS_FLOAT
        for subject in subjects:
            subject.entry['disagreement'] = [
                row.agreements[subject.title].score
                for row in rows
                if subject.title in row.agreements
            ]
        chosen = choose(
            [row.score for row in rows],
            worst=self.settings.num_worst,
            typical=self.settings.num_typical,
        )
        return [
            rows[index].picture(
                kind=kind if clean is not None else '',
                classes=self.classes,
                score=self.settings.score,
            )
            for index, kind in chosen
        ]

    def _row(
        self,
        models: Mapping[str, nn.Module | None],
        clean: nn.Module | None,
        batch: Any,
    ) -> _Row:
        """Run every model on one image."""
        half = self.settings.score / 2
        sample, reference = None, None
        if clean is not None:
            sample, reference = _predict(clean, batch, score=half)
        found: dict[str, Prediction] = {}
        for title, model in models.items():
            assert model is not None
            sample, found[title] = _predict(model, batch, score=half)
        size = _size_of(sample)
        return _Row(
            sample=sample,
            size=size,
            clean=reference,
            noisy=found,
            agreements={}
            if reference is None
            else {
                title: compare(
                    reference,
                    noisy,
                    score=self.settings.score,
                    size=size,
                )
                for title, noisy in found.items()
            },
        )


@dataclass(kw_only=True)
class _Row:
    """All predictions on one image."""

    sample: Any
    size: tuple[int, int]
    clean: Prediction | None
    noisy: dict[str, Prediction]
    agreements: dict[str, Agreement]

    @property
    def is_empty(self) -> bool:
        """Whether no model found anything."""
        found = [*self.noisy.values(), *([self.clean] if self.clean else [])]
        return all(one.is_empty for one in found)

    @property
    def score(self) -> float:
        """Greatest disagreement of a file with the float model."""
        return max((a.score for a in self.agreements.values()), default=0.0)

    def picture(
        self, *, kind: str, classes: Sequence[str], score: float
    ) -> dict[str, Any]:
        """Draw it; see ``pictures.draw``."""
        path = getattr(self.sample, 'img_path', None)
        image = None if path is None else read_image(path)
        drawn = draw(
            image,
            self.clean,
            self.noisy,
            self.agreements,
            classes=classes,
            score=score,
            size=self.size,
        )
        name = 'image' if path is None else Path(str(path)).name
        return {**drawn, 'name': name, 'kind': kind}


def _predict(
    model: nn.Module, batch: Any, *, score: float
) -> tuple[Any, Prediction]:
    """Run a model on a batch of one image."""
    with calibration_mode(model):
        outputs = run_batch(model, batch)
    is_list = isinstance(outputs, (list, tuple)) and len(outputs) > 0
    sample = outputs[0] if is_list else outputs
    return sample, read_prediction(sample, score=score)


def _size_of(sample: Any) -> tuple[int, int]:
    """Return height and width that a sample's coordinates refer to."""
    shape = getattr(sample, 'ori_shape', None)
    if isinstance(shape, (list, tuple)) and len(shape) >= 2:
        return int(shape[0]), int(shape[1])
    return 1, 1
