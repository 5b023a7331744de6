"""Evaluate an exported file in the place of a model's own layers."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner
from torch import nn

from taskptq.engine.end_to_end import install_boxes, returns_boxes
from taskptq.engine.network_parts import (
    guard_rest,
    parts_of,
)
from taskptq.engine.onnx_metadata import OnnxMetadata, open_parts
from taskptq.engine.raw_outputs import MAIN
from taskptq.export.openvino_session import ONNXRUNTIME
from taskptq.export.runtime import OnnxFileError, is_onnx_path

__all__ = ['claim_onnx', 'install_onnx']


def install_onnx(
    model: nn.Module,
    path: str,
    *,
    runtime: str | None = None,
    threads: int | None = None,
) -> OnnxMetadata:
    """Let the files of an export compute a model's network from now on.

    Args:
        model: Model of the config, with any weights; changed in place.
        path: File of the export's main part.
        runtime: ``onnxruntime`` or ``openvino``; None is the first.
        threads: Threads of the runtime; None takes those of torch.

    Raises:
        FileNotFoundError: If a file is missing.
        OnnxFileError: If a file cannot be used.
        ValueError: If it is of another model.
    """
    meta, sessions = open_parts(path, runtime=runtime, threads=threads)
    if meta.model != type(model).__name__:
        raise OnnxFileError(
            f'{path} is of a {meta.model}, but the config builds a '
            f'{type(model).__name__}: check that they belong together'
        )
    model.eval()
    if returns_boxes(meta.decoding):
        install_boxes(model, sessions[MAIN], decoding=meta.decoding or {})
    else:
        parts_of(model).install(sessions)
    guard_rest(model)
    return meta


def claim_onnx(runner: Runner, model: nn.Module) -> OnnxMetadata | None:
    """Install an ONNX file that a runner would otherwise read as weights.

    Call it in ``before_run``: afterwards the runner believes that its weights
    are loaded, and reads nothing. The runtime is that of the config's key
    ``runtime``: ``onnxruntime``, as without the key, or ``openvino``.

    Args:
        runner: Runner that is about to evaluate.
        model: Its model, not wrapped.

    Returns:
        The file's metadata; None if the runner has no such file to read.

    Raises:
        OnnxFileError: See :func:`install_onnx`; or if the file knows
            another number of classes than the data.
        SettingError: If there is no such runtime.
        ValueError: If the run asks to resume.
    """
    source: Any = runner._load_from
    if getattr(runner, '_has_loaded', False) or not is_onnx_path(source):
        return None
    if runner._resume:
        raise ValueError(
            f'resume=True continues a training, and {source} is an exported '
            'file: give it as load_from, with resume=False'
        )
    runtime = runner.cfg.get('runtime') or ONNXRUNTIME
    meta = install_onnx(model, str(source), runtime=runtime)
    _check_classes(runner, meta, path=str(source))
    runner._load_from = None
    runner._has_loaded = True
    size = meta.input_size
    runner.logger.info(
        f'{source} runs in the place of the network in {runtime} '
        f'({meta.recipe or "own settings"}, for {meta.target}, input '
        f'{"of any size" if size is None else "x".join(map(str, size))}, '
        f'{len(meta.parts)} part(s)); the host does the rest.'
    )
    return meta


def _check_classes(runner: Runner, meta: OnnxMetadata, *, path: str) -> None:
    """Refuse a file of other classes, whose outputs the host would reshape."""
    for loop in (runner._test_loop, runner._val_loop):
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        names = getattr(dataset, 'metainfo', {}).get('classes')
        if names and meta.classes and len(names) != len(meta.classes):
            raise OnnxFileError(
                f'{path} was exported for {len(meta.classes)} classes '
                f'({meta.classes[0]}, ...), but the data have {len(names)} '
                f'({names[0]}, ...): check that config and file belong '
                'together'
            )
