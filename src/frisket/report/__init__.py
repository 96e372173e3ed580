"""Results of runs as one page: what was measured, beside what others have published."""
