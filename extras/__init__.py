"""Optional extras: each file needs a package that the rest of the project does without."""
