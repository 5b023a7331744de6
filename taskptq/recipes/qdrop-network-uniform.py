"""As kl-fg, with the squared error of all heads and places.

What the loss of kl-fg is compared with.
"""

base = 'kl-fg'
reconstruction = dict(loss=dict(type='NetworkUniform'))
