"""Numerics with a plain reference beside each: attention's one door, dilated attention, run-length masks."""
