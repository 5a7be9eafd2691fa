"""The HTTP server: no rules of its own, it turns requests into messages and replies into answers."""
