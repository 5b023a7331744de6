"""gptq-matched for weights of which a mask sets some to 0.

The remaining ones are solved by least squares, layer by layer, so that they
make up for those that are gone; on a grid they are rounded by GPTQ.
"""

base = 'gptq-matched'
# 0 has one code in all channels, which a file can leave out.
qconfig = dict(weight=dict(symmetric=True))
reconstruction = dict(gptq_damping=0.03)
