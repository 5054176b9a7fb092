"""Whether a person would enjoy the feed: simulated readers of real texts, in closed loops."""
