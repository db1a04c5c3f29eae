"""Running a plan as jobs of a Slurm cluster."""
