"""What one does with a model or a finished run; each is run as python -m tools.NAME."""
