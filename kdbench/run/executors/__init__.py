"""Where the workers of a run are: in this process, in processes of this machine, on a cluster."""
