"""A catalog in PostgreSQL."""
