"""`datasets` builders for HAM10000, Fitzpatrick17k and the drawn phantoms, all in one record schema."""
