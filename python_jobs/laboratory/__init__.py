"""What is measured: the demo, the quality of recommendations, and what they cost."""
