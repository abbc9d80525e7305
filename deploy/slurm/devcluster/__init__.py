"""A Slurm cluster on one machine, for development: see ../dev-cluster."""
