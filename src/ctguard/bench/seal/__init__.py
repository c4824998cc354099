"""The seal, measured: what it finds, what it misses, who forges it, what it costs (protocols.md "Protection", Seal)."""
