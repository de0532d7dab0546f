"""Benchmarks that compare this service with other implementations.

All servers are measured in turn within one run; the results are medians and ratios. `python -m tests.benchmarks`
measures and prints everything. `rows/` holds the measurements, `peers/` the other implementations, and `load.c` the
load client. The service imports nothing from here.
"""
