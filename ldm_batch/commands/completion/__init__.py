"""What completes a command line: scripts of shells, and the answer that these ask for."""
