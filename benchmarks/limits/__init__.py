"""Lower bounds on the time of a restore or a save, measured like libraries.

Each limit does one part of the work with nothing around it: no library can be faster than that on
this machine at this moment.
"""
