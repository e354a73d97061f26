"""The servers and the client of the stream benchmark."""
