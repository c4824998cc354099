"""The codes in our objects: standard ones where there are any, our own under 99CTGUARD where there are none.

DICOM has no code for manipulated images. A designator that begins with 99 says that a scheme is private to its maker
(PS3.16 8.2); every object also carries CodingSchemeIdentificationSequence, which names the maker.
"""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SCHEME = "99CTGUARD"

CHECK = Code("TAMPER_CHECK", SCHEME, "Check for tampering")
"""What the measurements of a scan are about. A clean report must not read as if something were suspected."""
SUSPECTED = Code("SUSPECTED_TAMPER", SCHEME, "Suspected tampering")
"""What a segment shows, and what the measurements of a region are about."""
SCORE = Code("SCORE", SCHEME, "Tampering score, 0 to 1")
THRESHOLD = Code("THRESHOLD", SCHEME, "Score from which on a scan counts as tampered with")
REGION_SCORE = Code("REGION_SCORE", SCHEME, "Highest evidence of tampering in the region")
MAP = Code("TAMPERING_MAP", SCHEME, "Tampering map, 0 to 1")
VERDICT = Code("VERDICT", SCHEME, "Verdict on tampering")
EVIDENCE = Code("EVIDENCE", SCHEME, "evidence of tampering")
EVIDENCE_NOWHERE = Code("EVIDENCE_NOWHERE", SCHEME, "evidence of tampering; this detector does not say where")
NO_EVIDENCE = Code("NO_EVIDENCE", SCHEME, "no evidence of tampering found")

CATEGORY = codes.SCT.SpatialAndRelationalConcept
"""Of the segments (CID 7150): a suspected region is neither anatomy nor pathology, but a place."""
FAMILY = codes.DCM.ArtificialIntelligence
PROCEDURE = codes.LN.CTUnspecifiedBodyRegion
PROCESSING = Code("109102", "DCM", "Processing Equipment")
CHEST, ENTIRE_BODY = codes.SCT.Chest, codes.SCT.EntireBody
SOURCE = Code("260753009", "SCT", "Source")
NO_UNITS, MM3 = codes.UCUM.NoUnits, codes.UCUM.CubicMillimeter
VOLUME, OF_INTEREST, COMMENT = codes.SCT.Volume, codes.DCM.OfInterest, codes.DCM.Comment


def scheme() -> CodingSchemeIdentificationItem:
    """What 99CTGUARD is (PS3.3 C.12.1.1.7)."""
    return CodingSchemeIdentificationItem(SCHEME, name="ctguard", responsible_organization="ctguard project")
