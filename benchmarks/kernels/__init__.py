"""The kernels against the machine's ceilings: cases and floors per family, peers, measurement, table, plot."""
