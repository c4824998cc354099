"""Verdict -> DICOM objects beside the series: segmentation, parametric map, report, key object. For an archive."""
