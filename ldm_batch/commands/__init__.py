"""What an operator asks of a dataset: one module, or folder, a command."""
