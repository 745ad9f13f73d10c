"""The two workers' insides, usable in one process or behind gRPC."""
