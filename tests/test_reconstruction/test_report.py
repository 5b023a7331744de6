"""The report of a reconstruction: plain types."""

import json

from taskptq.reconstruction import (
    reconstruct,
)
from taskptq.testing import (
    tiny_batches,
)


def test_report_is_plain(quantized, quick, forward):

    model, batches = quantized('conv'), tiny_batches('conv')
    report = reconstruct(
        model, batches, quick(steps=2), forward=forward, progress=False
    ).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert 0 <= report['decided'] <= 1
    assert report['units'][1]['steps'] == 2
