"""Settings that ship with the package."""
