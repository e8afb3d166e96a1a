"""Crashes on purpose, and what they leave behind."""
