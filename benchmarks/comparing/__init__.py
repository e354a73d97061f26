"""What ``compare.py`` reads from the other programs."""
