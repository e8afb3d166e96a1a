"""`tradeoff`: time against quality of schedulers and steps on a job's own prompts."""
