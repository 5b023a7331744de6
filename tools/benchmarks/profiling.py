"""Profile the operators of a reconstruction step."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import run_setup
from benchmarks.sessions import Session, units_of


def measure(
    config_path: str,
    checkpoint: str,
    *,
    recipe: str,
    num_images: int,
    unit: str | None,
    steps: int,
    rows: int,
) -> dict[str, Any]:
    """Profile some steps of one unit.

    Args:
        config_path: Config of the float model.
        checkpoint: Float checkpoint.
        recipe: Name of the recipe, or a file that sets its parts.
        num_images: Calibration images.
        unit: Qualified name of the unit; None is the one in the middle.
        steps: Steps to profile, after as many warm-up steps.
        rows: Operators to list.

    Raises:
        ValueError: If there is no such unit.
    """
    config = run_setup.read_config(config_path)
    settings = run_setup.reconstruction(recipe, steps=steps)
    batches = list(
        run_setup.calibration_batches(
            config, num_images=num_images, batch_size=settings.batch_size
        )
    )
    model = run_setup.prepared(
        run_setup.load_float(config, checkpoint), batches, recipe=recipe
    )
    units = {u.name: u for u in units_of(model, batches[0], settings)}
    name = unit or list(units)[len(units) // 2]
    if name not in units:
        raise ValueError(
            f'there is no unit {name!r}: choose from {", ".join(units)}'
        )
    with run_setup.single_seed():
        session = Session(model, units[name], batches, settings)
        session.train()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            result = session.train()
        session.close()
    averages = recorded.key_averages()
    table = averages.table(sort_by='self_cpu_time_total', row_limit=rows)
    total = sum(event.self_cpu_time_total for event in averages)
    top = sorted(averages, key=lambda e: -e.self_cpu_time_total)[:rows]
    return {
        'config': config_path,
        'checkpoint': checkpoint,
        'recipe': recipe,
        'unit': name,
        'steps': steps,
        'seconds_per_step': result.seconds / steps,
        'operators': [
            {
                'name': event.key,
                'calls': event.count,
                'share': event.self_cpu_time_total / total,
            }
            for event in top
        ],
        'table': table,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    return [
        f'{result["unit"]}: {1000 * result["seconds_per_step"]:.0f} ms per '
        'step under the profiler',
        result['table'],
    ]
