"""Forgeries to measure and train the defence with: the only layer that joins cohort, tamper and zoo (MISUSE.md).

forge      one site of one volume: the forged volume, its exact ground truth, seconds per stage
sites      where to forge: the rules of M3Dsynth's paper, or a list of sites replayed
dataset    from an index to a data set, resumable
layouts    what a data set looks like on disk: Plan + changed block, DICOM series, or M3Dsynth's released layout
"""
