"""zarr arrays, versions 2 and 3: metadata and chunks."""
