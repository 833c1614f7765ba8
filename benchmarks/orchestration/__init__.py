"""A simulator of MoE inference with experts on both sides: the real planner and placement, in virtual time."""
