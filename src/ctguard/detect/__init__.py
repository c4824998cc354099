"""Forensic detectors: networks, and inference from slices or blocks to a verdict. Never imports tamper."""
