"""Nouns of the package: volumes, geometry, provenance, marks and records. No I/O and no models here."""
