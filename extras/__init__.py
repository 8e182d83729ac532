"""What one does with the project beyond training routers; run as python -m extras.NAME."""
