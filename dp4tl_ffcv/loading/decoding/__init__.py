"""Decoders of images for crops and views."""
