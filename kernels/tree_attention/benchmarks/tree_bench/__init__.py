"""How fast the tree-attention kernel is, beside what one would use without it and beside what the hardware allows.

Every output is checked against a float64 computation before it is timed. Ratios are what counts; microseconds stand
beside the description of the machine. Imports torch, transformers (its own attention functions are baselines) and the
kernel's module; rich and matplotlib only where something is shown.
"""
