"""A tour of the library: a machine monitor, chat rooms and experiments. Run ``python -m example_app``."""
