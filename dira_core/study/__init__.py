"""Many transfers of many weights: the grid, its jobs, its statistics, its tables."""
