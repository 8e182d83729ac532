"""The paper's tables and figures, other methods, controls; run as python -m experiments.NAME."""
