"""What this costs, beside the least it could cost: `python -m benchmarks` measures both in turns and prints a table.

Each file measures one thing and has one function, `measure`, that returns rows; `runner.py` holds what they share.
What the figures mean is in `docs/explanation/performance.md`.
"""
