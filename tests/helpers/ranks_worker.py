"""Runs of tiny models in processes of their own (tests kill or pair them)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import taskptq.methods  # noqa: F401 - so that recipes find its classes
from taskptq.calibration import calibrate
from taskptq.export import pack_model
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import ReconstructionConfig, freeze, reconstruct
from taskptq.testing import TinyBlock, tiny_batches, tiny_model


def run_model(model, batch):
    return model(batch)


def qconfig(observer='MinMaxObserver', bits=3, **kwargs):
    return QConfig.from_dict(
        kwargs
        | dict(
            weight=dict(num_bits=bits, symmetric=False),
            activation=dict(
                type='LSQQuantizer', num_bits=4, observer=dict(type=observer)
            ),
            edge_bits=None,
        )
    )


def settings(**kwargs):
    values = dict(steps=20, batch_size=4, skip_below=0.0) | kwargs
    return ReconstructionConfig.from_dict(values)


# ---- one process, to be killed -------------------------------------------

RESUME_STEPS = 120


def resumable(state_dir, *, seed=0, batches=None, **kwargs):
    """Quantize a tiny model; returns its report and packed checkpoint."""
    batches = batches or tiny_batches('conv', num_batches=3)
    model = tiny_model('conv')
    prepare(model, qconfig())
    calibrate(model, batches, forward=run_model)
    report = reconstruct(
        model,
        batches,
        settings(**{'steps': RESUME_STEPS, 'seed': seed} | kwargs),
        forward=run_model,
        state_dir=state_dir,
        progress=False,
    )
    freeze(model)
    return report, pack_model(model, recipe={'seed': seed}, meta={})


# ---- two processes --------------------------------------------------------


class Branching(nn.Module):
    """Batches with a positive mean take a layer and a part of a block."""

    def __init__(self):
        super().__init__()
        self.block = Forked(4)
        self.sometimes = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.block(torch.relu(x))
        if x.shape[0] == 3:
            x = torch.relu(self.sometimes(x))
        return self.head(x)


class Forked(TinyBlock):
    def __init__(self, channels):
        super().__init__(channels, channels)
        self.side = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        out = super().forward(x)
        return out + self.side(x) if x.shape[0] == 3 else out


def branching_case():
    """The model and its batches; the last layer's batches differ in size."""
    torch.manual_seed(0)
    model = Branching().eval()
    generator = torch.Generator().manual_seed(1)
    return model, [
        torch.randn(size, 4, 8, 8, generator=generator)
        for size in (2, 3, 2, 3)
    ]


MATCHED = dict(match_float=True, output_ranges=True, bias_correction=True)
CASES = {
    'minmax': ('conv', 'MinMaxObserver', None),
    'mse': ('conv', 'MSEObserver', None),
    'percentile': ('transformer', 'PercentileObserver', None),
    'kl': ('window', 'KLObserver', None),
    'aligned': ('transformer', 'MSEObserver', None),
    'adaround': ('conv', 'MSEObserver', {}),
    'layer': ('transformer', 'MinMaxObserver', {'scope': 'layer'}),
    'gptq': ('window', 'MinMaxObserver', {'rounding': 'gptq'}),
    'matched': ('window', 'MinMaxObserver', {'rounding': 'gptq'} | MATCHED),
    'branch': ('branching', 'MinMaxObserver', {}),
    'branch gptq': ('branching', 'MinMaxObserver', {'rounding': 'gptq'}),
}


ALIGNED = dict(
    attention=dict(per_head=True), query=dict(type='AlignedQuantizer')
)


def run_case(name, *, rank=0, world_size=1, state_dir=None):
    """Quantize on one rank's shard; returns the final state."""
    kind, observer, reconstruction = CASES[name]
    if kind == 'branching':
        model, batches = branching_case()
    else:
        model = tiny_model(kind)
        batches = tiny_batches(kind, num_batches=4)
    prepare(model, qconfig(observer, **(ALIGNED if name == 'aligned' else {})))
    shard = batches[rank::world_size]
    report = calibrate(model, shard, forward=run_model)
    result = {'unobserved': report.unobserved}
    if reconstruction is not None:
        done = reconstruct(
            model,
            shard,
            settings(**reconstruction),
            forward=run_model,
            state_dir=state_dir,
            progress=False,
        )
        result['units'] = [unit.name for unit in done.units]
        result['uncalled'] = done.uncalled
        result['resumed'] = done.resumed_units
    freeze(model)
    result['state'] = {k: v.clone() for k, v in model.state_dict().items()}
    result['codes'] = {
        f'{name}.{parameter}': module.codes(parameter)
        for name, module in quant_modules(model)
        for parameter, _ in module.active_slots()
    }
    return result


def half_resumed(folder, rank, world_size):
    """Resume where one rank lacks its last file, as after a kill."""
    options = dict(rank=rank, world_size=world_size, state_dir=folder)
    first = run_case('adaround', **options)
    if rank == 1:
        sorted(folder.glob('unit_*_rank1.pth'))[-1].unlink()
    dist.barrier()
    return first, run_case('adaround', **options)


def run_rank(folder):
    dist.init_process_group('gloo')
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = {
        name: run_case(name, rank=rank, world_size=world_size)
        for name in CASES
    }
    first, second = half_resumed(folder / 'states', rank, world_size)
    results |= {'before': first, 'resumed': second}
    torch.save(results, folder / f'rank{rank}.pth')
    dist.destroy_process_group()


def main(task, folder):
    torch.set_num_threads(1)
    folder = Path(folder)
    if task == 'resume':
        report, payload = resumable(folder / 'states')
        done = {'digest': payload['digest'], 'resumed': report.resumed_units}
        torch.save(done, folder / 'done.pth')
    else:
        run_rank(folder)


if __name__ == '__main__':
    main(*sys.argv[1:])
