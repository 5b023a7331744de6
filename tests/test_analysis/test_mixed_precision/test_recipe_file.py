"""The written recipe reads back as what was chosen."""

import runpy

from taskptq.analysis.mixed_precision.recipe_file import recipe_text

PARTS = dict(
    qconfig=dict(
        weight=dict(num_bits=8, observer=dict(type='MSEObserver')),
        overrides=[
            dict(pattern='a*', weight=dict(num_bits=4)),
            dict(pattern='b', activation=dict(num_bits=16)),
        ],
        keep_float=['c'],
    ),
    reconstruction=None,
    rewrites=[],
)


def test_round_trip(tmp_path):
    text = recipe_text(
        PARTS,
        added=dict(overrides=1, keep_float=1),
        notes={'b': 'loss 1 -> 0', 'a*': 'not chosen'},
        title='Chosen.',
    )
    path = tmp_path / 'chosen.py'
    path.write_text(text)
    found = runpy.run_path(str(path))
    assert found['qconfig'] == PARTS['qconfig']
    assert 'reconstruction' not in found
    assert '    # loss 1 -> 0\n' in text
    assert 'not chosen' not in text
    assert max(map(len, text.splitlines())) < 80
