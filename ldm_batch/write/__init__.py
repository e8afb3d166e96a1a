"""Pixels -> one committed object: encoding, provenance, Parquet, the exclusive create."""
