"""What is here, what will run, and why. Imports no torch."""
