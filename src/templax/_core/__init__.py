"""Names, boxes, dtypes and other plain values that every stage uses."""
