"""What no library can be faster than on this machine at this moment, measured like a library."""
