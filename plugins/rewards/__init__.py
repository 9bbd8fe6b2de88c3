"""Parts of the composite reward."""
