"""Leaf names, boxes, dtypes and other basics that every stage uses."""
