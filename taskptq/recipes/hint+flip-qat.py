"""flip-qat, with the necks distilled everywhere, as in hint-qat."""

base = 'hint-qat'
qconfig = dict(weight=dict(type='LevelQuantizer', pull='flip'))
