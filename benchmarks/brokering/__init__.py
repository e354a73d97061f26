"""The measurements of the broker benchmark."""
