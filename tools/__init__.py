"""Commands for a model or a finished run; run as python -m tools.NAME."""
