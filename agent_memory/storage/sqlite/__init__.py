"""A catalog in a SQLite file."""
