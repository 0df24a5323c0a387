"""Ways in: the command line. Nothing else of the package imports these."""
