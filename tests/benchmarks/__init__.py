"""Benchmarks: this service beside others, in one run, in turn; quoted as medians and ratios.

`python -m tests.benchmarks` measures and prints everything. `rows/` has what is measured, `peers/` the others, `load.c`
the clients. Nothing here is imported by the service.
"""
