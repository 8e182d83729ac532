"""Files read strictly and written whole. Nothing here knows a model."""
