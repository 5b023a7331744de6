"""QDrop (Wei et al., ICLR 2022).

As brecq, with half of the activations left float at random while a block
learns.
"""

base = 'brecq'
reconstruction = dict(drop_prob=0.5)
