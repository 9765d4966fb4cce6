"""The four kinds of calibration text that build_calibration.py mixes."""
