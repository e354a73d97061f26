"""The two sides of the stream benchmark: servers, each in a process of its own, and the client that measures them."""
