"""A drill for operators: a wave of spam, and the way back, on a scratch database."""
