"""gptq-matched on one grid step for each weight, for a file of some size.

The steps come from ``qconfig.size``; many narrow codes take few bits once
they are entropy-coded.
"""

base = 'gptq-matched'
qconfig = dict(weight=dict(per_channel=False, symmetric=True))
reconstruction = dict(output_ranges=False)
