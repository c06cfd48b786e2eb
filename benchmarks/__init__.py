"""Time training, inference and data generation, alone and against a baseline."""
