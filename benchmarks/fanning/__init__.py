"""The fan-out benchmark: its servers, its load, its cases and its tables."""
