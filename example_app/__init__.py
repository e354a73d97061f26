"""A machine monitor and a chat: what the library is for, in a small application. ``python -m example_app``."""
