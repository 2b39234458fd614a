"""What makes the released results again, and the pages that show them; they stand in model_cards/."""
