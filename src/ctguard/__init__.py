"""ctguard: has a CT scan been tampered with, and where? Research use only; not a medical device."""

__version__ = "0.1.0"

RESEARCH_USE_ONLY = "Research use only. Not a medical device. Not for diagnosis."
