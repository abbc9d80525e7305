"""The bridge to Slurm: tasks of class gpu_slurm become jobs, and what became of these comes back."""
