"""The parts of benchmarks/brokers.py."""
