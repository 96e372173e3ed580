"""Running a recipe somewhere: strategy (DDP, DeepSpeed), preemption, the run folder and its checkpoints."""
