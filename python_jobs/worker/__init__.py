"""What a deployer runs: the worker process, what it does, and the models that it trains."""
