"""What tests need around real servers; it ships with the test kit, and is defined there."""

from streams.testing_server import HOST, CommandFilter, NatsServer, TcpProxy, free_port, wait_until

__all__ = ["HOST", "CommandFilter", "NatsServer", "TcpProxy", "free_port", "wait_until"]
