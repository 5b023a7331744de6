"""What a quantized file computes with, as one digest and one per section.

Unlike the file's own digest it leaves out the schema, the recipe and the
metadata, so files of different versions can be compared.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def section_digest(tensors: Mapping[str, Any]) -> str:
    """Return the sha256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = f'{name} {tensor.dtype} {list(tensor.shape)}'
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def content_digests(payload: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each section of a quantized file's payload."""
    weights = payload['weights']
    packed = {name: entry['packed'] for name, entry in weights.items()}
    layout = {
        name: torch.tensor(
            [entry['num_bits'], entry['quant_min'], *entry['shape']]
        )
        for name, entry in weights.items()
    }
    return {
        'weights': section_digest(packed),
        'layout': section_digest(layout),
        'quantizers': section_digest(payload['quantizers']),
        'float': section_digest(payload['float']),
    }
