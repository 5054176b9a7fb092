"""Measurements of the budgets, each as a ratio against the same thing without our work."""
