"""gptq-matched, with positions weighed by their influence on the outputs.

Most positions of an image show background, and few decide what is found.
Where the model's outputs cannot be compared or differentiated, all positions
count the same.
"""

base = 'gptq-matched'
reconstruction = dict(position_weights=True, position_optional=True)
