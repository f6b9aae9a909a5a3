"""Image decoders for crops and views."""
