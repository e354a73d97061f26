"""Metrics and traces of streams, chains and Hubs, made from their facts. Each module needs the extra of its name."""
