"""Where the workers of a run are: in processes of this machine, or on a cluster."""
