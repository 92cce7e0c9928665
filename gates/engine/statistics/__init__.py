"""The statistics of docs/gates.md sections 2, 3 and 6, and nothing else. Pure functions of numbers.

`moments` what is known of one arm, `effects` how two arms differ, `sequences` intervals and p-values that stay valid whenever
one looks, `srm` whether units arrived as planned, `planning` how many units and days a decision takes.

Each formula is written once. Where `xp` is an argument it is `math` for one number (this path decides) or `numpy` for arrays
over looks or experiments (which only propose where to look: exp and log may differ in the last bit).
"""
