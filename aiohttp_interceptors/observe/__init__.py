"""What happened: facts, and where they are told. Knows nothing of the rest of the library."""
