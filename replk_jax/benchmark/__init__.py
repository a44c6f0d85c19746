"""Measures the speed of networks and of single operators on the current device.

All contenders of a comparison run interleaved in one process; see `timing`.
"""
