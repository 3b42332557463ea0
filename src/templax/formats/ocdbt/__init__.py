"""OCDBT, the key-value database that Orbax stores arrays in."""
