"""The rows that benchmarks print with ``--json``, and their comparison."""
