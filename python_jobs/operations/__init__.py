"""What an operator calls: how the database is, its safety, and the versions of the towers."""
