"""Reads files with strict checks and writes them completely or not at all; independent of the
model."""
