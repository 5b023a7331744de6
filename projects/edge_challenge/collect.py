"""Write RESULTS.md from what ``measure.py`` measured.

Run it without arguments, after ``measure.py --out`` into the folder results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.markdown import to_markdown

HERE = Path(__file__).resolve().parent
INTRO = """# The edge challenge: results

Scores by `measure.py`, see [README.md](README.md): mean Dice over images,
median processor time of the network for one image. The challenge's own
images could not be had; CamVid stands in, and the times are those of a
server's core, so the scores compare files with each other and with no entry
of the challenge.
"""
HEADER = ['config', 'file', 'accuracy', 'ms per image', 'score', 'MiB']


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        results: Contents of the results files.
    """
    lines = [
        [
            Path(result['config']).stem,
            row['model'],
            f'{row["accuracy"]:.4f}',
            f'{1000 * row["seconds_per_image"]:.1f}',
            f'{row["score"]:.2f}',
            f'{row["file_bytes"] / 2**20:.2f}',
        ]
        for result in results
        for row in result['rows']
    ]
    commands = [f'    {result["command"]}' for result in results]
    runtimes = dict.fromkeys(result['runtime'] for result in results)
    return '\n\n'.join(
        [
            INTRO.strip(),
            to_markdown(HEADER, lines),
            f'{"; ".join(runtimes)}. By:',
            '\n'.join(commands) + '\n',
        ]
    )


def main() -> None:
    """Write the page."""
    files = sorted((HERE / 'results').glob('*.json'))
    results = [json.loads(file.read_text(encoding='utf-8')) for file in files]
    (HERE / 'RESULTS.md').write_text(page(results), encoding='utf-8')


if __name__ == '__main__':
    main()
