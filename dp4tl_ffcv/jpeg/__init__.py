"""JPEG: TurboJPEG, the marker structure, decoding of a crop."""
