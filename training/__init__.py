"""Interactions in, artefact out."""
