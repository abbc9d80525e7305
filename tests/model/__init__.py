"""The protocol of claims as a model that spin goes through, state by state."""
