"""Recipes, one training loop for every model, checkpoints with their cards."""
