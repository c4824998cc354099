"""Synthetic chest CT patients: anatomy, nodules, acquisition physics. No download."""
