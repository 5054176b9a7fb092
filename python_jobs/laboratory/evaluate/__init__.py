"""How good recommendations are: test, then train, on a real stream of engagements."""
