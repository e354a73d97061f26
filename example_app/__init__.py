"""A machine monitor and chat rooms: a small application that uses the library. Run ``python -m example_app``."""
