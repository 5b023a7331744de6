"""As fqm, with the squared error of all outputs of the head.

What fqm and drd are compared with at equal steps.
"""

base = 'fqm'
reconstruction = dict(loss=dict(_delete_=True, type='NetworkUniform'))
