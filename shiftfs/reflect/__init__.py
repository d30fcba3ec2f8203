"""Makes what happens in the layers happen on the mount, too."""
