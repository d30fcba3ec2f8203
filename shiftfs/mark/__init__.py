"""Marks: trees that root lets others mount in their own user namespaces."""
