"""As fqm, with the squared error of all outputs of the head.

The baseline of fqm and drd at equal steps.
"""

base = 'fqm'
reconstruction = dict(loss=dict(_delete_=True, type='NetworkUniform'))
