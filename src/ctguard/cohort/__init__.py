"""Lists of scans with their findings, split by patient: folders, LIDC-IDRI, LUNA16, M3Dsynth."""
