"""What is told and published of a model: its card."""
