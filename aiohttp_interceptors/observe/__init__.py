"""Metrics and traces of streams, chains and Hubs, made from their facts, and a page for operators.

The modules ``prometheus`` and ``opentelemetry`` need the extras of their names.
"""
