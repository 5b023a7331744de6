"""Convert the published weights of LSTR to a checkpoint of this project.

    python -m lane_detection.convert_lstr lstr_tusimple.pkl lstr_tusimple.pth

The file is read without running code from it. The result is what
``configs/lstr_r18s_tusimple.py`` evaluates, or, from the weights that were
trained on CULane, ``configs/lstr_r18s_culane-mini.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from taskptq.engine.checkpoint_file import local_file, read_checkpoint

__all__ = ['convert', 'main', 'rename']

PREFIX = 'module.'
# Operation counters that a profiler left in the file.
COUNTERS = ('total_ops', 'total_params')
# Pattern of the names in the file -> name here.
RULES: dict[str, str] = {
    r'(conv1|bn1|layer\d)\.(.+)': r'backbone.\1.\2',
    r'(input_proj|query_embed|class_embed)\.(.+)': r'head.\1.\2',
    r'transformer\.decoder\.norm\.(.+)': r'head.decoder.post_norm.\1',
}
for _old, _new in {
    'self_attn': 'self_attn.attn',
    'multihead_attn': 'cross_attn.attn',
    'linear1': 'ffn.layers.0.0',
    'linear2': 'ffn.layers.1',
    'norm1': 'norms.0',
    'norm2': 'norms.1',
    'norm3': 'norms.2',
}.items():
    RULES[rf'transformer\.(\w+)\.layers\.(\d)\.{_old}\.(.+)'] = (
        rf'head.\1.layers.\2.{_new}.\3'
    )
for _index, _old in enumerate(('specific_embed', 'shared_embed')):
    for _layer in range(3):
        # Here the sequence has ReLUs between its linears.
        RULES[rf'{_old}\.layers\.{_layer}\.(.+)'] = (
            rf'head.reg_branches.{_index}.{2 * _layer}.\1'
        )
CLASSES = 'head.class_embed'
# The last layer of the branch whose first two outputs are a lane's ends.
ENDS = 'head.reg_branches.0.4'
# Layers of every LSTR; a file without them holds something else.
REQUIRED = (
    'backbone.conv1.weight',
    'head.input_proj.weight',
    'head.query_embed.weight',
    'head.class_embed.weight',
    'head.encoder.layers.0.self_attn.attn.in_proj_weight',
    'head.decoder.layers.0.cross_attn.attn.in_proj_weight',
    'head.reg_branches.0.4.weight',
    'head.reg_branches.1.4.weight',
)


def rename(name: str) -> str | None:
    """Return the name of a weight in an LSTR of this project.

    Args:
        name: Name in the file, with or without ``module.``.

    Returns:
        The new name, or None for a counter.

    Raises:
        ValueError: If LSTR has no such weight.
    """
    short = name.removeprefix(PREFIX)
    if short.rpartition('.')[2] in COUNTERS:
        return None
    for pattern, replacement in RULES.items():
        found = re.fullmatch(pattern, short)
        if found is not None:
            return found.expand(replacement)
    raise ValueError(
        f'{name} is not a weight of LSTR: give the file of its authors'
    )


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of a LaneDetector with LSTRHead.

    Args:
        state: Contents of the published file.

    Raises:
        ValueError: If weights are missing or unknown.
    """
    converted = {}
    for name, value in state.items():
        new = rename(name)
        if new is not None:
            converted[new] = value
    missing = [name for name in REQUIRED if name not in converted]
    if missing:
        raise ValueError(
            f'the file has no {missing[0]} under any name: give '
            'the weights of LSTR as its authors published them'
        )
    for name in [n for n in converted if n.endswith('.running_mean')]:
        # Frozen norms have no counter; mm's start at zero.
        counter = name.replace('running_mean', 'num_batches_tracked')
        converted.setdefault(counter, torch.tensor(0))
    return from_culane(converted)


def from_culane(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights that were trained on CULane into TuSimple's form.

    They have three logits, the first of a class that no label uses, then
    "lane" and "no lane"; and CULane's labels run upwards, so that the two
    ends of a lane come in the other order.

    Args:
        state: Weights under the names of this project.

    Returns:
        The same weights if there are two logits.

    Raises:
        ValueError: If there are neither two nor three logits.
    """
    count = state[f'{CLASSES}.weight'].shape[0]
    if count == 2:
        return state
    if count != 3:
        raise ValueError(
            f'class_embed has {count} logits: an LSTR has 2 (TuSimple) or 3 '
            '(CULane)'
        )
    changed = dict(state)
    for kind in ('weight', 'bias'):
        logits, ends = state[f'{CLASSES}.{kind}'], state[f'{ENDS}.{kind}']
        changed[f'{CLASSES}.{kind}'] = logits[[2, 1]].clone()
        order = [1, 0, *range(2, len(ends))]
        changed[f'{ENDS}.{kind}'] = ends[order].clone()
    return changed


def convert_file(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Convert a file and return the ``meta`` of the new one.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If it holds something else.
    """
    path = local_file(source)
    state = read_checkpoint(path)
    meta = {
        'lstr': {
            'source': Path(path).name,
            'sha256': hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        }
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': convert(state), 'meta': meta}, out)
    return meta


def main(argv: list[str] | None = None) -> None:
    """Run the command; None reads ``sys.argv``."""
    parser = argparse.ArgumentParser(
        prog='python -m lane_detection.convert_lstr',
        description='Convert the published weights of LSTR',
    )
    parser.add_argument('source', help='file of the authors')
    parser.add_argument('out', help='file to write')
    args = parser.parse_args(argv)
    try:
        meta = convert_file(args.source, args.out)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print_log(
        f'Wrote {args.out}, from a file with sha256 {meta["lstr"]["sha256"]}'
    )


if __name__ == '__main__':
    main()
