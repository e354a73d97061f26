"""What carries records between processes, and from one life of a process to the next: one file for each server."""
