"""Perturbations that make forging fail. The attack that they work against is an argument."""
