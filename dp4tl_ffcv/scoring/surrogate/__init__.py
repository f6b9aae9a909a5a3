"""Surrogates: build, load and save classifiers and encoders."""
