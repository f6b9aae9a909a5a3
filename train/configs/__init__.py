"""Complete configurations by name, and how flags and files change them."""
