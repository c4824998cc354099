"""A DICOM node and a review page beside a PACS. It reaches nothing that forges (an import contract)."""
