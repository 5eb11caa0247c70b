"""A GPU that this processor plays, for tests where there is none: a driver (``driver.c``) and a compiler (``nvcc.py``)."""
