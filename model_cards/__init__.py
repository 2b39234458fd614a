"""Templates of the model cards, in Jinja; `melanoma_fair_xai.hub.card` fills them."""
