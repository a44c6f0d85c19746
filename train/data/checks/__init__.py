"""Checks of data sets before anyone trains on them: python -m train.check"""
