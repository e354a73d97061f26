"""The fan-out benchmark: the servers that publish, the load that opens streams and checks them, and the figures."""
