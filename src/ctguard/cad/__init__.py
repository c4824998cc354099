"""Computer-aided diagnosis: nodule proposals and malignancy scores. A surrogate for measuring forgeries, no device."""
