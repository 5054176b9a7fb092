"""What tests share: databases, users, engagements, the reference, workers, patience."""
