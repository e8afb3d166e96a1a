"""What an operator asks of a dataset, or for a model: one module, or folder, a command."""
