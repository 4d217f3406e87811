"""Texts that the program reads and writes: JSON, YAML, tables, what a terminal may show."""
