"""The example feed of examples/feed, served with figures of the engine, on this machine only."""
