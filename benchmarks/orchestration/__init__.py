"""A simulator of MoE inference with experts on GPU and CPU: the real planner and placement, in virtual time."""
