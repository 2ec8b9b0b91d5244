"""From a profile to its results: the grid, the plan, the engine, and what is published.

Training alone needs ``profile``, ``hints`` and ``runs``; only ``plan``, ``publish`` and ``engine`` use the
notebook tools.
"""
