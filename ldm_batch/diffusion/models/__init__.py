"""Where a model comes from: found, fetched, converted, imported, and held to what was planned."""
