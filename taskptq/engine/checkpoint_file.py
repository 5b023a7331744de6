"""Read float checkpoints without running code from them."""

from __future__ import annotations

import hashlib
import http.client
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from taskptq.export.errors import FileError, NotPlainFileError, shown
from taskptq.export.files import verify_file
from taskptq.export.reader import read_file
from taskptq.export.runtime import is_onnx_path
from taskptq.export.schema import is_quantized
from taskptq.registry import allow_history_buffers

__all__ = [
    'TRAINING_KEY',
    'load_float_weights',
    'local_file',
    'read_checkpoint',
]

# Entry of a QATHook checkpoint that holds the weights and the recipe.
TRAINING_KEY = 'taskptq_qat'

MAX_NAMED = 5
# Smaller views with repeated elements are common and harmless.
MAX_VIEW_BYTES = 1 << 20
# Names in the model zoos end with the first digits of the file's sha256;
# eight digits may also be a date.
HASH_IN_NAME = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8})\.[^.]+$')


def local_file(checkpoint: str | Path) -> Path:
    """Return the path of a local file or of the cached download of a URL.

    The cache has a folder for each full URL, since two URLs may end in the
    same file name. A hash in the name, as in the model zoos, is verified.

    Args:
        checkpoint: Path, or http(s) URL as in the model zoos.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the download fails or does not match the hash in its
            name.
    """
    url = str(checkpoint)
    parts = urlparse(url)
    if parts.scheme in ('http', 'https'):
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        folder = Path(torch.hub.get_dir()) / 'checkpoints' / key
        path = folder / (Path(parts.path).name.strip('.') or 'checkpoint')
        if not path.is_file():
            fetch(url, path)
        return path
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint file {path}')
    return path


def fetch(url: str, path: Path) -> None:
    """Download a file; ``path`` exists only once it is complete.

    Args:
        url: Address.
        path: Target; its folder is created.

    Raises:
        ValueError: If the download fails or does not match the hash.
    """
    hashed = HASH_IN_NAME.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writes next to the target and renames, which two processes may do.
        torch.hub.download_url_to_file(
            url,
            str(path),
            hash_prefix=hashed and hashed.group(1),
            progress=False,
        )
    except RuntimeError as error:
        raise ValueError(
            f'{url} does not match the sha256 in its name, so it is damaged '
            'or another file: if you trust it anyway, fetch it yourself and '
            'give its path'
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f'{url} could not be fetched: {error}; fetch it yourself and '
            'give its path'
        ) from error


def read_checkpoint(
    path: str | Path, *, trust_checkpoint: bool = False
) -> dict[str, Any]:
    """Read a checkpoint file, float or quantized, onto the CPU.

    The file is checked before any of its instructions run, see
    ``taskptq.export.reader``.

    Args:
        path: Local file.
        trust_checkpoint: Unpickle files that hold more than plain data,
            which can run code from them.

    Returns:
        The contents; a ``VerifiedPayload`` for a quantized file.

    Raises:
        ValueError: If the file is truncated, not a checkpoint, or holds more
            than plain data without being trusted.
        QuantizedCheckpointError: If a quantized file was changed, is
            incomplete, or has an unknown schema.
    """
    if is_onnx_path(path):
        raise ValueError(
            f'{path} is an exported file: give the checkpoint that it was '
            'exported from'
        )
    allow_history_buffers()
    try:
        checkpoint = read_file(path, training=True, trust=trust_checkpoint)
    except NotPlainFileError as error:
        raise ValueError(
            f'{path} was not loaded, because it {error}, which no plain '
            'checkpoint does, and unpickling could run code from the file: '
            'if you trust its source, allow it with --trust-checkpoint '
            '(in Python: trust_checkpoint=True)'
        ) from error
    except FileError as error:
        raise ValueError(f'{path} {error}: fetch or write it again') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, not a checkpoint'
        )
    if is_quantized(checkpoint):
        return verify_file(checkpoint, path)
    for name, tensor in named_tensors(checkpoint):
        problem = tensor_problem(tensor)
        if problem:
            raise ValueError(
                f'{path}: {shown(name)} is {problem}; save it '
                'as a plain tensor'
            )
    return checkpoint


def named_tensors(checkpoint: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, lists and tuples, with their names.

    Args:
        checkpoint: Nested data, possibly shared or circular; each part is
            visited once.
    """
    left: list[tuple[str, Any]] = [('', checkpoint)]
    seen: set[int] = set()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = (
                value.items() if isinstance(value, dict) else enumerate(value)
            )
            left += [
                (f'{name[:99]}.{str(key)[:99]}'.lstrip('.'), part)
                for key, part in items
                if isinstance(part, (Tensor, dict, list, tuple))
            ]


def tensor_problem(tensor: Tensor) -> str:
    """Return why a tensor cannot be a weight; empty if it can."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return 'a sparse or nested tensor'
    if tensor.is_meta:
        return 'a meta tensor, which has no values'
    if tensor.is_quantized:
        return f'a tensor of dtype {tensor.dtype}'
    size = tensor.numel() * tensor.element_size()
    if size > max(tensor.untyped_storage().nbytes(), MAX_VIEW_BYTES):
        return (
            f'a view of {size:,} bytes over '
            f'{tensor.untyped_storage().nbytes():,} stored ones'
        )
    return ''


def load_float_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], *, path: str | Path
) -> None:
    """Load a float checkpoint's weights into a model, in the model's dtype.

    Args:
        model: Built model; float16 tensors are cast to its float32.
        checkpoint: Contents of the file: a state dict, or one under
            ``state_dict``.
        path: The file, for messages.

    Raises:
        ValueError: If it is a quantized file, or weights are missing or have
            other shapes.
    """
    if is_quantized(checkpoint):
        raise ValueError(
            f'{path} is quantized already: give the float checkpoint it was '
            'made from'
        )
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping):
        raise ValueError(f'{path} has no state_dict with weights')
    for name in state:
        if not isinstance(name, str):
            raise ValueError(
                f'the state_dict of {path} has the key '
                f'{shown(name)}, which is not a name'
            )
    weights = {
        name.removeprefix('module.'): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    own = model.state_dict()
    lacking = [
        f'has {name} as {list(weights[name].shape)} instead of '
        f'{list(tensor.shape)}'
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    lacking += [
        f'has {name} as {weights[name].dtype} instead of {tensor.dtype}'
        for name, tensor in own.items()
        if name in weights
        and tensor.is_floating_point()
        and not weights[name].is_floating_point()
    ]
    if not lacking:
        # Only a load shows what is missing: modules may accept old names.
        found = model.load_state_dict(weights, strict=False)
        # num_batches_tracked is unused in eval mode.
        lacking = [
            f'lacks {name}'
            for name in found.missing_keys
            if not name.endswith('_tracked')
        ]
    if lacking:
        raise ValueError(
            f'{path} does not fit {type(model).__name__}: it '
            f'{"; ".join(lacking[:MAX_NAMED])} ({len(lacking)} in all); check '
            'that config and checkpoint belong together'
        )
    unused = sorted(set(weights) - set(own))
    if unused:
        print_log(
            f'{path} holds {len(unused)} tensors that the model does not '
            f'use, e.g. {unused[0]}',
            logger='current',
            level=30,
        )
