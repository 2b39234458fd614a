"""Fair and explainable melanoma diagnosis: the library that the scripts at the top share."""
