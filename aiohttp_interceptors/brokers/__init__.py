"""Brokers: a module or package per engine. They connect the Hubs of several processes and keep their history."""
