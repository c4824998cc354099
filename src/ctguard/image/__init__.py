"""Measurements and operations on voxels that know nothing of forging: resampling, lung, noise, degradation."""
