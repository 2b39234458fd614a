"""Attributions by captum, and how far they can be trusted: fidelity, localisation, controls and traps, by group."""
