"""Training of the two demo models: seeded, resumable, scheduled in steps."""
